"""What an adapter adds to the linear layers of its base, for the rows that are its own.

LoRA (Hu et al., 2021): y = W x + scale * B (A x), where A and B are of low rank. W stays as it is,
and so one product with W serves the rows of the base and of all its adapters together, as in Punica
and S-LoRA; what each adapter adds is computed for its own rows alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALL_ROWS = slice(None)


def delta_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which deltas of a model of this dtype are kept and computed.

    On a CPU float32: for narrower dtypes oneDNN compiles a kernel for every number of rows, half a
    millisecond each, and products this small take three times as long.
    """
    return torch.float32 if device.type == "cpu" else dtype


@dataclass(frozen=True, slots=True)
class DeltaPart:
    """One projection among those that a fused linear layer computes side by side."""

    outputs: slice
    """Of the layer."""
    ranks: slice
    """Of the inner values of the `LinearDelta`."""
    up: Tensor
    """B [outputs, rank]."""
    scale: float


class LinearDelta:
    """Adds scale * (x A^T) B^T to outputs of one linear layer, which may be a fused one."""

    def __init__(self, down: Tensor, parts: Sequence[DeltaPart]) -> None:
        """down: the A of all parts, one below the other: [sum of ranks, in_features]. It and the B
        of the parts are of one dtype, in which they are computed with."""
        self._down = down
        self._parts = [(part.outputs, part.ranks, part.up.t(), part.scale) for part in parts]

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """x [rows, in_features]; changes out [rows, out_features], strided by rows."""
        inner = F.linear(x.to(self._down.dtype), self._down)
        is_of_out = out.dtype == inner.dtype
        for outputs, ranks, up, scale in self._parts:
            if is_of_out:
                out[:, outputs].addmm_(inner[:, ranks], up, alpha=scale)
            else:
                out[:, outputs].add_(inner[:, ranks] @ up, alpha=scale)


@dataclass(frozen=True, slots=True)
class LayerDelta:
    """Of one decoder layer; None where nothing is added."""

    qkv: LinearDelta | None = None
    o: LinearDelta | None = None
    gate_up: LinearDelta | None = None
    down: LinearDelta | None = None


class RowDelta(NamedTuple):
    """Which rows of a batch belong to an adapter."""

    rows: slice
    of: LayerDelta


def add_deltas(
    out: Tensor, x: Tensor, deltas: Iterable[tuple[slice, LinearDelta | None]]
) -> Tensor:
    """`out`, the outputs of a linear layer for all rows of x, changed in place for these rows."""
    for rows, delta in deltas:
        if delta is not None:
            delta.add_to(out[rows], x[rows])
    return out
