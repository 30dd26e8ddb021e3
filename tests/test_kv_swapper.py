"""Blocks that go from the device's cache to the host's pool and back."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from host_pool_builders import make_pool
from torch import Tensor

from cpu_attn.element import Element
from cpu_attn.host import HostKvPool
from omniserve.piggyback.cpu_block_copier import CpuBlockCopier
from omniserve.piggyback.kv_swapper import BlockIds, KvSwapper

DTYPES = {
    Element.FLOAT32: torch.float32,
    Element.FLOAT16: torch.float16,
    Element.BFLOAT16: torch.bfloat16,
}
NUM_DEVICE_BLOCKS = 6
CORES = tuple(os.sched_getaffinity(0))


def make_cache(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Two layers of six blocks: whole numbers, which every dtype holds."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, NUM_DEVICE_BLOCKS, 2, 2, 16, 16)
    return torch.randint(-99, 100, shape, generator=generator).to(dtype)


def host_numbers(pool: HostKvPool, block: int, dtype: torch.dtype) -> Tensor:
    """[2 layers, 2, 2, 16, 16] of a host block, by the pool's own reading."""
    return torch.from_numpy(pool.copy_out([block])).view(dtype)[:, 0]


def drain(swapper: KvSwapper) -> list[str]:
    deadline = time.monotonic() + 30
    keys: list[str] = []
    while swapper.num_in_flight:
        assert time.monotonic() < deadline, "copies do not land"
        keys += swapper.poll()
        time.sleep(0.001)
    return keys


def swapper_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("kv-swapper")}


@pytest.fixture
def pool() -> Iterator[HostKvPool]:
    with closing(make_pool()) as pool:
        pool.allocate(8)
        yield pool


@pytest.mark.parametrize("element", DTYPES)
def test_blocks_arrive_where_they_were_sent_and_come_back_elsewhere(element: Element) -> None:
    cache = make_cache(DTYPES[element])
    original = cache.clone()
    with closing(make_pool(element)) as pool:
        pool.allocate(8)
        pool.words[:] = 7
        untouched = pool.copy_out([0])
        with closing(KvSwapper(CpuBlockCopier(cache, pool, CORES))) as swapper:
            swapper.begin_out("a", [4, 0, 5], [2, 7, 3])
            assert drain(swapper) == ["a"]
            assert torch.equal(cache, original)
            for device_block, host_block in ((4, 2), (0, 7), (5, 3)):
                found = host_numbers(pool, host_block, cache.dtype)
                assert torch.equal(found, original[:, device_block])
            for block in (0, 1, 4, 5, 6):
                np.testing.assert_array_equal(pool.copy_out([block]), untouched)

            swapper.begin_in("b", [7, 2], [1, 3])
            assert drain(swapper) == ["b"]
            expected = original.clone()
            expected[:, 1], expected[:, 3] = original[:, 0], original[:, 4]
            assert torch.equal(cache, expected)


def test_swaps_land_in_order_and_are_counted(pool: HostKvPool) -> None:
    cache = make_cache()
    block_bytes = pool.layout.block_bytes
    with closing(KvSwapper(CpuBlockCopier(cache, pool, CORES))) as swapper:
        assert swapper.poll() == []
        swapper.begin_out("a", [0, 1], [0, 1])
        swapper.begin_out("nothing", [], [])
        # What is read back was written by the first, so an order is needed.
        swapper.begin_in("b", [1], [5])
        assert swapper.num_in_flight <= 3
        assert drain(swapper) == ["a", "nothing", "b"]
        assert torch.equal(cache[:, 5], cache[:, 1])
        assert (swapper.num_swaps_out, swapper.num_swaps_in) == (2, 1)
        assert (swapper.swap_out_bytes, swapper.swap_in_bytes) == (2 * block_bytes, block_bytes)


def test_a_swap_of_nothing_lands(pool: HostKvPool) -> None:
    with closing(KvSwapper(CpuBlockCopier(make_cache(), pool, CORES))) as swapper:
        swapper.begin_in("nothing", [], [])
        assert swapper.num_in_flight == 1
        assert drain(swapper) == ["nothing"]
        assert (swapper.num_swaps_in, swapper.swap_in_bytes) == (1, 0)


def test_close_waits_for_copies_and_lets_none_begin(pool: HostKvPool) -> None:
    cache, of_others = make_cache(), swapper_threads()
    swapper = KvSwapper(CpuBlockCopier(cache, pool, CORES))
    swapper.begin_out("a", [3], [6])
    swapper.close()
    assert torch.equal(host_numbers(pool, 6, cache.dtype), cache[:, 3])
    assert swapper.poll() == ["a"]
    swapper.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        swapper.begin_out("b", [3], [6])
    assert swapper.num_in_flight == 0
    assert swapper_threads() <= of_others


@pytest.mark.parametrize(
    ("device", "host"), [([6], [0]), ([-1], [0]), ([0], [8]), ([0], [-1]), ([0, 1], [0])]
)
def test_blocks_outside_the_memory_are_refused(
    pool: HostKvPool, device: list[int], host: list[int]
) -> None:
    with closing(KvSwapper(CpuBlockCopier(make_cache(), pool, CORES))) as swapper:
        with pytest.raises(AssertionError):
            swapper.begin_out("a", device, host)
        with pytest.raises(AssertionError):
            swapper.begin_in("a", host, device)
        assert swapper.num_in_flight == 0


def test_the_thread_runs_on_the_given_cores_alone(pool: HostKvPool) -> None:
    before, of_others = os.sched_getaffinity(0), swapper_threads()
    with closing(KvSwapper(CpuBlockCopier(make_cache(), pool, CORES[-1:]))):
        (thread,) = swapper_threads() - of_others
        assert thread.native_id is not None
        assert os.sched_getaffinity(thread.native_id) == {CORES[-1]}
    assert os.sched_getaffinity(0) == before


def test_a_core_that_is_not_there_is_refused(pool: HostKvPool) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        CpuBlockCopier(make_cache(), pool, (4000,))


class ScriptedCopy:
    """Lands, or raises, when told to."""

    def __init__(self) -> None:
        self.landed = False
        self.error: Exception | None = None

    def has_landed(self) -> bool:
        if self.error is not None:
            raise self.error
        return self.landed


class ScriptedCopier:
    num_device_blocks, num_host_blocks, block_bytes = 4, 4, 10

    def __init__(self) -> None:
        self.copies: list[ScriptedCopy] = []

    def copy_out(self, device_ids: BlockIds, host_ids: BlockIds) -> ScriptedCopy:
        self.copies.append(ScriptedCopy())
        return self.copies[-1]

    copy_in = copy_out

    def close(self) -> None: ...


def test_what_a_copy_raised_is_raised_once_after_the_keys_before_it() -> None:
    copier = ScriptedCopier()
    swapper = KvSwapper(copier)
    for key in "abc":
        swapper.begin_out(key, [0], [1])
    first, second, third = copier.copies
    first.landed = third.landed = True
    second.error = OSError("gone")
    assert swapper.poll() == ["a"]
    with pytest.raises(OSError, match="gone"):
        swapper.poll()
    assert swapper.poll() == ["c"]
    assert (swapper.num_swaps_out, swapper.swap_out_bytes, swapper.num_in_flight) == (2, 20, 0)


def test_a_later_swap_waits_for_the_ones_before_it() -> None:
    copier = ScriptedCopier()
    swapper = KvSwapper(copier)
    swapper.begin_out("a", [0], [1])
    swapper.begin_in("b", [0], [1])
    copier.copies[1].landed = True
    assert swapper.poll() == []
    copier.copies[0].landed = True
    assert swapper.poll() == ["a", "b"]
