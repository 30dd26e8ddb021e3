"""Products of few rows with a weight that oneDNN packed, read where it lies."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from cpu_attn import skinny_linear as kernel
from cpu_attn.skinny_linear import skinny_linear_kernel
from cpu_attn.skinny_tile import BLOCK_OUTPUTS
from omniserve.devices.openmp_team import OpenMpTeam, TeamKernel
from omniserve.models.packed_layout import lies_in_blocks, packed_bits

# With fewer weights, waking the other threads takes longer than the work.
_FEW_WEIGHTS = 1 << 16


@cache
def _team_kernel() -> TeamKernel:
    return TeamKernel(OpenMpTeam(), skinny_linear_kernel())


class SkinnyProduct:
    """y = x W^T + b of 1 to MAX_ROWS rows in bfloat16; one thread at a time may call it."""

    def __init__(self, packed: Tensor, shape: tuple[int, int], bias: Tensor | None) -> None:
        """packed: W [out_features, in_features], of that shape, in blocks; see packed_layout."""
        self._num_outputs, self._num_inputs = shape
        # Addresses only are handed on: what is behind them is kept alive here.
        self._packed = packed
        self._bias = torch.zeros(self._num_outputs) if bias is None else bias.float()
        task = np.zeros(kernel.NUM_FIELDS, dtype=np.int64)
        task[kernel.NUM_BLOCKS] = self._num_outputs // BLOCK_OUTPUTS
        task[kernel.NUM_PAIRS] = self._num_inputs // 2
        task[kernel.WEIGHTS] = torch.ops.mkldnn.data_ptr(packed)
        task[kernel.BIAS] = self._bias.data_ptr()
        task[kernel.OUT_STRIDE] = 2 * self._num_outputs
        # A view keeps the memory alive, and setting an item of one costs half of what numpy's does.
        self._fields = task.data
        self._task_address: int = task.ctypes.data
        self._alone = self._num_outputs * self._num_inputs < _FEW_WEIGHTS
        self._kernel = _team_kernel()

    def takes(self, x: Tensor) -> bool:
        rows, length = x.shape
        return (
            0 < rows <= kernel.MAX_ROWS
            and length == self._num_inputs
            and x.stride(1) == 1
            and x.dtype is torch.bfloat16
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x: one that it takes."""
        rows = x.shape[0]
        out = x.new_empty(rows, self._num_outputs)
        fields = self._fields
        fields[kernel.NEXT_BLOCK] = 0
        fields[kernel.NUM_ROWS] = rows
        fields[kernel.X] = x.data_ptr()
        fields[kernel.X_STRIDE] = 2 * x.stride(0)
        fields[kernel.OUT] = out.data_ptr()
        self._kernel.run(self._task_address, alone=self._alone)
        return out


def skinny_product(weight: Tensor, packed: Tensor, bias: Tensor | None) -> SkinnyProduct | None:
    """The product with a weight [out_features, in_features] whose packed copy is given.

    None where the kernel does not run: another dtype, a CPU without AVX512-BF16, out_features that
    are no multiple of 64, in_features that oneDNN fills up, any other layout, or a torch that tells
    no addresses.
    """
    if weight.dtype != torch.bfloat16 or not kernel.can_run():
        return None
    try:
        bits = packed_bits(packed)
    except (AttributeError, RuntimeError):
        return None
    if not lies_in_blocks(bits, weight.detach().view(torch.uint16).numpy()):
        return None
    num_outputs, num_inputs = weight.shape
    return SkinnyProduct(packed, (num_outputs, num_inputs), bias)
