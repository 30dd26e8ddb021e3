"""The host's slot arrays as tensors: what host attention reads and writes, by lane."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.host import HostAttention


@dataclass(frozen=True, slots=True)
class SlotTensors:
    """The same memory as the arrays, for one query token a lane."""

    q: Tensor
    """[lanes, num_heads, head_dim]"""
    k: Tensor
    """[lanes, num_kv_heads, head_dim]"""
    v: Tensor
    out: Tensor
    """[lanes, num_heads * head_dim]"""

    @classmethod
    def of(cls, host: HostAttention, model: int, dtype: torch.dtype) -> Self:
        """dtype: the model's, whose bits the arrays hold."""
        slots = host.slots[model]
        q, k, v, out = (
            _as_tensor(array, dtype)[:, 0] for array in (slots.q, slots.k, slots.v, slots.out)
        )
        return cls(q, k, v, out.flatten(1))

    @property
    def sent_size(self) -> int:
        """Numbers of q, k and v of one row."""
        return sum(tensor[0].numel() for tensor in (self.q, self.k, self.v))

    def write(self, lanes: Tensor, rows: Tensor) -> None:
        """Puts rows [count, numbers of q, then of k, then of v] to their lanes, int64 [count]."""
        targets = [tensor.flatten(1) for tensor in (self.q, self.k, self.v)]
        parts = rows.split([target.shape[1] for target in targets], dim=1)
        for target, part in zip(targets, parts, strict=True):
            target.index_copy_(0, lanes, part)


def _as_tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """numpy has no bfloat16, so its bits come as uint16."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)
