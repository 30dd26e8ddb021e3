"""Row-wise operations of a CPU device: one pass over memory each, on torch's own threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpu_attn.row_kernels import NUM_FIELDS, add_norm_kernel, gated_silu_kernel, rotate_kernel
from omniserve.devices.elements import ELEMENTS
from omniserve.devices.openmp_team import OpenMpTeam, TeamKernel
from omniserve.models.row_ops import TorchRowOps

# Below this, waking the other threads takes longer than the work.
_FEW_ELEMENTS = 16384
_MULTIPLE = 32


class _RowTask:
    """A kernel and the numbers it is given; one thread at a time may set and run it."""

    def __init__(self, team: OpenMpTeam, callback: Any) -> None:
        numbers = np.zeros(NUM_FIELDS, dtype=np.int64)
        # Views keep the memory alive, and setting an item of one costs half of what numpy's takes.
        self._fields = numbers.data
        self._eps: Any = numbers.view(np.float64).data
        self._address: int = numbers.ctypes.data
        self._kernel = TeamKernel(team, callback)

    def run(self, num_rows: int, num_elements: int, fields: tuple[int, ...], eps: float) -> None:
        numbers = self._fields
        numbers[0] = 0
        numbers[1] = num_rows
        for index, value in enumerate(fields, start=2):
            numbers[index] = value
        self._eps[2 + len(fields)] = eps
        self._kernel.run(self._address, alone=num_elements < _FEW_ELEMENTS)


class CpuRowOps(TorchRowOps):
    """Falls back to torch where a length does not fill whole vectors."""

    def __init__(self, dtype: torch.dtype, team: OpenMpTeam) -> None:
        element = ELEMENTS[dtype]
        self._element = element
        self._team = team
        self._norm = _RowTask(team, add_norm_kernel(element, False))
        self._add_norm = _RowTask(team, add_norm_kernel(element, True))
        self._gated_silu = _RowTask(team, gated_silu_kernel(element))
        self._rotations: dict[tuple[int, bool], _RowTask] = {}

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, length = x.shape
        if length % _MULTIPLE or x.stride(1) != 1:
            return super().norm(x, weight, eps)
        out = x.new_empty(rows, length)
        stride = x.stride(0) * x.element_size()
        pointers = (x.data_ptr(), stride, 0, 0, 0, weight.data_ptr(), out.data_ptr(), length)
        self._norm.run(rows, x.numel(), pointers, eps)
        return out

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        rows, length = x.shape
        if length % _MULTIPLE or x.stride(1) != 1 or delta.stride(1) != 1:
            return super().add_norm(x, delta, weight, eps)
        total, out = x.new_empty(rows, length), x.new_empty(rows, length)
        size = x.element_size()
        pointers = (
            x.data_ptr(),
            x.stride(0) * size,
            delta.data_ptr(),
            delta.stride(0) * size,
            total.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            length,
        )
        self._add_norm.run(rows, x.numel(), pointers, eps)
        return total, out

    def rotate_heads(
        self,
        heads: Tensor,
        norm_weight: Tensor | None,
        eps: float,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        rows, num_heads, head_dim = heads.shape
        if head_dim % (2 * _MULTIPLE) or heads.stride(1) != head_dim:
            return super().rotate_heads(heads, norm_weight, eps, rotary)
        cos, signed_sin = rotary
        pointers = (
            heads.data_ptr(),
            heads.stride(0) * heads.element_size(),
            num_heads,
            0 if norm_weight is None else norm_weight.data_ptr(),
            cos.data_ptr(),
            signed_sin.data_ptr(),
        )
        task = self._rotation(head_dim, norm_weight is not None)
        task.run(rows, heads.numel(), pointers, eps)
        return heads

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        rows, both = gate_up.shape
        length = both // 2
        if length % _MULTIPLE or not gate_up.is_contiguous():
            return super().gated_silu(gate_up)
        out = gate_up.new_empty(rows, length)
        pointers = (gate_up.data_ptr(), out.data_ptr(), length)
        self._gated_silu.run(rows, gate_up.numel(), pointers, 0.0)
        return out

    def _rotation(self, head_dim: int, norms: bool) -> _RowTask:
        key = (head_dim, norms)
        if key not in self._rotations:
            kernel = rotate_kernel(self._element, head_dim, norms)
            self._rotations[key] = _RowTask(self._team, kernel)
        return self._rotations[key]
