"""Shared memory's own promises; what the pool does with it is in test_host_pool."""

import mmap
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cpu_attn.host.shared_memory import SharedMemory, huge_page_bytes

TWO_MIB = 2 << 20


@pytest.mark.parametrize(
    ("common", "of_size", "expected"),
    [
        ("always within_size [advise] never deny force", None, TWO_MIB),
        ("always within_size advise [never] deny force", None, None),
        ("[always] within_size advise never deny force", "always [inherit] advise never", TWO_MIB),
        ("[always] within_size advise never deny force", "always inherit advise [never]", None),
        ("always within_size advise [never] deny force", "always inherit [advise] never", TWO_MIB),
        ("always within_size advise [never] deny force", "always [inherit] advise never", None),
        ("always within_size advise never [deny] force", "[always] inherit advise never", None),
        ("always within_size advise never deny [force]", "always inherit advise [never]", TWO_MIB),
    ],
)
def test_the_kernel_s_settings_say_whether_pages_are_huge(
    tmp_path: Path, common: str, of_size: str | None, expected: int | None
) -> None:
    (tmp_path / "hpage_pmd_size").write_text(f"{TWO_MIB}\n")
    (tmp_path / "shmem_enabled").write_text(common + "\n")
    if of_size is not None:
        (tmp_path / "hugepages-2048kB").mkdir()
        (tmp_path / "hugepages-2048kB" / "shmem_enabled").write_text(of_size + "\n")
    assert huge_page_bytes(tmp_path) == expected


def test_a_kernel_without_huge_pages_has_none(tmp_path: Path) -> None:
    assert huge_page_bytes(tmp_path) is None


def test_memory_asked_for_without_huge_pages_is_taken_by_the_page() -> None:
    with closing(SharedMemory.create("test", 8 << 20)) as memory:
        memory.array(np.uint8, (1,), offset_bytes=TWO_MIB)[0] = 1
        assert memory.resident_bytes == mmap.PAGESIZE
        memory.give_back(TWO_MIB + 1, 8 << 20)
        assert memory.resident_bytes == mmap.PAGESIZE
        memory.give_back(TWO_MIB, 8 << 20)
        assert memory.resident_bytes == 0


def test_huge_pages_are_given_back_whole() -> None:
    """Acts as if the kernel had them, so that it is tried where it has not."""
    with closing(SharedMemory.create("test", 8 << 20)) as memory:
        memory.huge_page_bytes = TWO_MIB
        memory.array(np.uint8, (8 << 20,))[:] = 1
        memory.give_back(mmap.PAGESIZE, (6 << 20) - 1)
        numbers = memory.array(np.uint8, (4, TWO_MIB))
        assert numbers[:, 0].tolist() == [1, 0, 1, 1]
        assert numbers[2, -1] == 1


def test_memory_is_given_back_while_other_threads_run_python() -> None:
    """A system call of its own, which must not reach memory that was unmapped."""
    memory = SharedMemory.create("test", 8 << 20)
    memory.array(np.uint8, (8 << 20,))[:] = 1
    with pytest.raises(OSError, match="Invalid argument"):
        memory._remove(1, mmap.PAGESIZE)
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.give_back(0, 8 << 20)


def test_attached_memory_is_the_same_and_has_the_size_that_was_said() -> None:
    with closing(SharedMemory.create("test", 4096)) as memory:
        with closing(SharedMemory.attach(os.dup(memory.fd), 4096)) as other:
            other.array(np.int64, (2,), offset_bytes=8)[:] = [3, 4]
            assert memory.address != other.address
        assert memory.array(np.int64, (3,)).tolist() == [0, 3, 4]
        with pytest.raises(ValueError, match="num_bytes 8192: the memory has 4096 bytes"):
            SharedMemory.attach(os.dup(memory.fd), 8192)


def test_arrays_outlive_the_memory_that_was_closed() -> None:
    memory = SharedMemory.create("test", 4096)
    numbers = memory.array(np.int64, (512,))
    memory.close()
    numbers[:] = 5
    assert numbers.sum() == 5 * 512
    assert memory.closed
