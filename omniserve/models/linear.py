"""Linear layers whose weights are laid out once for the device that runs them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from omniserve.models.skinny_linear import SkinnyProduct


class Linear(Protocol):
    """y = x W^T + b; x is [rows, in_features], the result [rows, out_features]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class PlainLinear:
    """A linear layer over an ordinary weight [out_features, in_features]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        return self._weight, self._bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


def row_bucket(rows: int) -> int:
    """The number of rows that is really computed: a few sizes instead of every one.

    oneDNN compiles and keeps a kernel for each size, which takes milliseconds and about 100 KiB.
    """
    if rows <= 16:
        return rows
    step = 4 if rows <= 64 else 16 if rows <= 256 else 32
    return -(-rows // step) * step


class PackedLinear:
    """A linear layer over a weight in oneDNN's blocked layout: 2-2.7 x `F.linear` at few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed_weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            weight.contiguous(), None
        )
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        padded_rows = row_bucket(rows)
        if padded_rows != rows:
            x = F.pad(x, (0, 0, 0, padded_rows - rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed_weight, self._bias, "none", [], ""
        )
        return out[:rows]


class SkinnyLinear:
    """A packed linear layer whose few rows a kernel of ours takes: 1.1-1.8 x oneDNN there."""

    def __init__(self, few_rows: "SkinnyProduct", many_rows: PackedLinear) -> None:
        self._few_rows = few_rows
        self._many_rows = many_rows

    def __call__(self, x: Tensor) -> Tensor:
        return self._few_rows(x) if self._few_rows.takes(x) else self._many_rows(x)


def packed_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The fastest layer over a packed weight on this CPU."""
    packed = PackedLinear(weight, bias)
    if weight.dtype != torch.bfloat16:
        return packed
    # Compiles for this CPU: only who runs on one loads it.
    from omniserve.models.skinny_linear import skinny_product

    few_rows = skinny_product(weight, packed.packed_weight, bias)
    return packed if few_rows is None else SkinnyLinear(few_rows, packed)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN takes prepacked weights of this dtype on this machine.

    float16 needs AVX512-FP16 and bfloat16 at least AVX512; asking oneDNN itself is the one check
    that stays true across torch versions.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        probe = PackedLinear(torch.eye(16, dtype=dtype), None)
        x = torch.ones(1, 16, dtype=dtype)
        return bool(torch.equal(probe(x), x))
    except (RuntimeError, AttributeError):
        return False


def fused_parameters(modules: Sequence[torch.nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, in new memory, of one layer with the outputs of several side by side."""
    weight = torch.cat([module.weight.detach() for module in modules])
    if all(module.bias is None for module in modules):
        return weight, None
    biases = [
        weight.new_zeros(module.out_features) if module.bias is None else module.bias.detach()
        for module in modules
    ]
    return weight, torch.cat(biases)
