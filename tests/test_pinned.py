"""Host memory for an accelerator's copies, as far as it can be tried without one."""

import numpy as np
import pytest
import torch

from omniserve.devices.npu import NpuRegion
from omniserve.devices.pinned import empty_pinned, pin, to_device

CPU = torch.device("cpu")


def test_a_cpu_device_reads_the_same_memory() -> None:
    source = np.arange(6, dtype=np.int64).reshape(2, 3)
    sent = to_device(source, CPU)
    source[0, 0] = 7
    assert sent.tolist() == [[7, 1, 2], [3, 4, 5]]


def test_new_memory_has_the_shape_and_dtype_asked_for() -> None:
    memory = empty_pinned((2, 3), torch.bfloat16, CPU)
    assert (tuple(memory.shape), memory.dtype) == ((2, 3), torch.bfloat16)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="its runtime may be there")
def test_without_the_runtime_of_an_npu_its_absence_is_said() -> None:
    with pytest.raises(OSError, match="libascendcl"):
        NpuRegion(4096, 4096)


def test_memory_of_a_cpu_device_is_not_pinned() -> None:
    with pytest.raises(AssertionError, match="cpu"):
        pin(4096, 4096, CPU)
