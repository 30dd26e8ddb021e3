"""Swaps of an accelerator, on torch's CPU device with a stream that is late."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from host_pool_builders import make_pool
from late_stream import LateStream
from torch import Tensor

from cpu_attn.element import Element
from cpu_attn.host import HostKvPool
from omniserve.devices.elements import ELEMENTS
from omniserve.devices.side_stream import AcceleratorStream
from omniserve.piggyback import accelerator_block_copier
from omniserve.piggyback.accelerator_block_copier import AcceleratorBlockCopier
from omniserve.piggyback.device_path import open_swapper
from omniserve.piggyback.kv_swapper import KvSwapper

NUM_DEVICE_BLOCKS = 12


class Region:
    """Memory that counts as page-locked until it is closed."""

    def __init__(self) -> None:
        self.is_pinned = True

    def close(self) -> None:
        self.is_pinned = False


class Setup:
    """A cache [2 layers, 12 blocks, 2, 2, 16, 16], a pool of eight held blocks, a late stream."""

    def __init__(self, pool: HostKvPool, dtype: torch.dtype = torch.float32) -> None:
        pool.allocate(8)
        self.pool = pool
        self.cache = make_cache(dtype)
        self.stream = LateStream()
        self.region = Region()
        copier = AcceleratorBlockCopier(self.cache, pool, self.stream, self.region)
        self.swapper = KvSwapper(copier)

    def host_block(self, block: int) -> Tensor:
        """[2, 2, 2, 16, 16] by the pool's own reading."""
        return torch.from_numpy(self.pool.copy_out([block])).view(self.cache.dtype)[:, 0]


def make_cache(dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Whole numbers, which every dtype holds."""
    shape = (2, NUM_DEVICE_BLOCKS, 2, 2, 16, 16)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-99, 100, shape, generator=generator).to(device, dtype)


@pytest.fixture
def setup() -> Iterator[Setup]:
    with closing(make_pool()) as pool:
        yield Setup(pool)


@pytest.mark.parametrize("staged_blocks", [1, 3, 8])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_blocks_arrive_where_they_were_sent_and_come_back_elsewhere(
    dtype: torch.dtype, staged_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(make_pool(ELEMENTS[dtype])) as pool:
        staging_bytes = staged_blocks * pool.layout.block_bytes
        monkeypatch.setattr(accelerator_block_copier, "_STAGING_BYTES", staging_bytes)
        setup = Setup(pool, dtype)
        original = setup.cache.clone()
        pool.words[:] = 7
        untouched = setup.host_block(0)
        # Runs of one, two and three blocks, some of them across staged parts.
        sent = {11: 3, 4: 4, 0: 5, 7: 1, 2: 6, 3: 7}
        setup.swapper.begin_out("a", list(sent), list(sent.values()))
        setup.stream.drain()
        assert setup.swapper.poll() == ["a"]
        assert torch.equal(setup.cache, original)
        for device_block, host_block in sent.items():
            assert torch.equal(setup.host_block(host_block), original[:, device_block])
        for block in (0, 2):
            assert torch.equal(setup.host_block(block), untouched)

        setup.swapper.begin_in("b", [7, 3, 4, 5], [1, 10, 9, 0])
        setup.stream.drain()
        assert setup.swapper.poll() == ["b"]
        expected = original.clone()
        for target, source in {1: 3, 10: 11, 9: 4, 0: 0}.items():
            expected[:, target] = original[:, source]
        assert torch.equal(setup.cache, expected)


def test_a_swap_lands_when_the_stream_got_there_and_not_before(setup: Setup) -> None:
    """And it reads what steps launched before it had still to write."""
    setup.swapper.begin_out("a", [1], [1])
    setup.swapper.begin_out("nothing", [], [])
    setup.swapper.begin_in("b", [1], [2])
    setup.cache[:, 1] = 5
    assert setup.swapper.poll() == []
    setup.stream.advance()
    assert setup.swapper.poll() == ["a"]
    assert (setup.host_block(1) == 5).all()
    setup.stream.advance()
    assert setup.swapper.poll() == ["nothing"]
    setup.stream.advance()
    assert setup.swapper.poll() == ["b"]
    assert (setup.cache[:, 2] == 5).all()
    block_bytes = setup.pool.layout.block_bytes
    assert (setup.swapper.swap_out_bytes, setup.swapper.swap_in_bytes) == (block_bytes, block_bytes)


def test_memory_stays_pinned_until_copies_have_landed(setup: Setup) -> None:
    setup.swapper.begin_out("a", [1], [1])
    pinned_at_copy = []
    setup.stream.enqueue(lambda: pinned_at_copy.append(setup.region.is_pinned))
    assert setup.region.is_pinned
    setup.swapper.close()
    assert pinned_at_copy == [True]
    assert not setup.region.is_pinned
    assert setup.swapper.poll() == ["a"]


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
def test_swaps_on_a_device() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    cache = make_cache(torch.bfloat16, device.type)
    original = cache.clone()
    with closing(make_pool(Element.BFLOAT16)) as pool:
        pool.allocate(8)
        with closing(open_swapper(cache, pool, ())) as swapper:
            swapper.begin_out("a", [3, 11, 0], [2, 3, 7])
            # In stream order: no copy may see it.
            swapper.begin_in("b", [7, 2], [1, 0])
            keys: list[str] = []
            while swapper.num_in_flight:
                keys += swapper.poll()
            assert keys == ["a", "b"]
            expected = original.clone()
            expected[:, 1], expected[:, 0] = original[:, 0], original[:, 3]
            assert torch.equal(cache, expected)
            found = torch.from_numpy(pool.copy_out([3])).view(torch.bfloat16)[:, 0]
            assert torch.equal(found, original[:, 11].cpu())


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
def test_a_side_stream_follows_the_compute_stream() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    stream = AcceleratorStream(device)
    values = torch.zeros(1 << 22, device=device)
    for _ in range(100):
        values += 1
    copies: list[Tensor] = []
    mark = stream.enqueue(lambda: copies.append(values.clone()))
    values_are_kept = values
    stream.drain()
    assert mark.query()
    assert (copies[0] == 100).all() and values_are_kept is values
