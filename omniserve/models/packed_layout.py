"""Whether a weight that oneDNN packed lies in memory as the kernel for few rows reads it.

oneDNN chooses a layout by itself, by the CPU and the shape, and promises none: so each weight is
looked at. It fills up in_features that are no multiple of 32, for one, which is not taken.
"""

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.skinny_tile import BLOCK_OUTPUTS

_NUM_SAMPLES = 4096
_LEAST_DISTINCT = 64


def packed_bits(packed: Tensor) -> NDArray[np.uint16]:
    """The memory of a packed 16-bit weight, as long as that lives.

    Raises AttributeError or RuntimeError where torch does not tell where it lies.
    """
    address: int = torch.ops.mkldnn.data_ptr(packed)
    num_bytes: int = torch.ops.mkldnn._nbytes(packed)
    memory = (ctypes.c_uint16 * (num_bytes // 2)).from_address(address)
    return np.ctypeslib.as_array(memory)


def lies_in_blocks(packed: NDArray[np.uint16], weight: NDArray[np.uint16]) -> bool:
    """Whether `packed` is weight [N, K] as [N / 64, K / 2, 64, 2] and nothing more.

    Its corners and a sample all over it are compared. False too where the sample holds so few
    different values that another layout might look the same.
    """
    num_outputs, num_inputs = weight.shape
    if num_outputs % BLOCK_OUTPUTS or num_inputs % 2:
        return False
    if not weight.size or packed.size != weight.size:
        return False
    random = np.random.default_rng(0)
    outputs = np.append(random.integers(num_outputs, size=_NUM_SAMPLES), [0, 0, -1, -1])
    inputs = np.append(random.integers(num_inputs, size=_NUM_SAMPLES), [0, -1, 0, -1])
    expected = weight[outputs, inputs]
    if len(np.unique(expected)) < _LEAST_DISTINCT:
        return False
    blocks = packed.reshape(-1, num_inputs // 2, BLOCK_OUTPUTS, 2)
    outputs, inputs = outputs % num_outputs, inputs % num_inputs
    block, output = divmod(outputs, BLOCK_OUTPUTS)
    pair, side = divmod(inputs, 2)
    return bool(np.array_equal(blocks[block, pair, output, side], expected))
