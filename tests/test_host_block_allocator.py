"""Which blocks of the host's KV pool are handed out, shared and kept, against a plain model."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from host_pool_builders import ELEMENTS, draw_pages, make_pool, read_back
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cpu_attn.element import Element
from cpu_attn.host.block_allocator import PoolFull, PoolIntegrityError
from cpu_attn.host.pool import HostKvPool


@pytest.fixture
def pool() -> Iterator[HostKvPool]:
    """Eight blocks of 8 KiB."""
    with closing(make_pool()) as pool:
        yield pool


def test_lowest_free_blocks_are_handed_out_first(pool: HostKvPool) -> None:
    table = pool.allocate(5)
    assert table == [0, 1, 2, 3, 4]
    pool.free([3, 1])
    assert pool.allocate(3) == [1, 3, 5]


def test_a_full_pool_says_both_numbers_and_changes_nothing(pool: HostKvPool) -> None:
    pool.allocate(6)
    assert pool.can_allocate(2) and not pool.can_allocate(3)
    with pytest.raises(PoolFull, match="3 blocks asked, 2 of 8 are free") as caught:
        pool.allocate(3)
    assert (caught.value.num_asked, caught.value.num_free) == (3, 2)
    assert pool.allocate(2) == [6, 7]


def test_a_registered_block_outlives_its_holders_until_others_are_gone(pool: HostKvPool) -> None:
    table = pool.allocate(3)
    pages = draw_pages(pool, 3)
    pool.copy_in(table, pages)
    for block_id, block_hash in zip(table, (b"a", b"b", b"c"), strict=True):
        pool.register(block_id, block_hash)
    pool.free(table)
    assert (pool.num_free_blocks, pool.num_cached_blocks) == (8, 3)
    assert pool.allocate(5) == [3, 4, 5, 6, 7]
    assert pool.share([b"a", b"b", b"x", b"c"]) == table[:2]
    np.testing.assert_array_equal(pool.copy_out(table[:2]), pages[:, :2])
    assert pool.num_cached_blocks == 1
    assert pool.allocate(1) == [2]
    assert pool.share([b"c"]) == []


def test_the_deepest_block_of_the_longest_unused_prefix_is_evicted_first(pool: HostKvPool) -> None:
    old, new = pool.allocate(4), pool.allocate(4)
    for block_id in [*old, *new]:
        pool.register(block_id, b"%d" % block_id)
    pool.free(old)
    pool.free(new)
    assert pool.share([b"3"]) == [3]
    pool.free([3])
    assert pool.allocate(5) == [2, 1, 0, 7, 6]


def test_the_first_block_of_a_hash_keeps_it(pool: HostKvPool) -> None:
    first, second = pool.allocate(2)
    pool.register(first, b"a")
    pool.register(second, b"a")
    pool.register(first, b"a")
    assert pool.share([b"a"]) == [first]
    pool.free([second])
    assert pool.num_cached_blocks == 0
    with pytest.raises(ValueError, match=f"block {first} has the hash 61, not 62"):
        pool.register(first, b"b")


def test_a_hash_that_is_none_takes_no_references(pool: HostKvPool) -> None:
    blocks = pool.allocate(1)
    pool.register(blocks[0], b"first")
    with pytest.raises(TypeError):
        pool.share([b"first", bytearray(b"second")])  # type: ignore[list-item]
    pool.check_integrity([blocks])
    assert pool.share([b"first", b"first"]) == 2 * blocks
    pool.check_integrity([3 * blocks])


def test_integrity_names_both_numbers(pool: HostKvPool) -> None:
    table = pool.allocate(2)
    pool.register(0, b"a")
    assert pool.share([b"a"]) == [0]
    pool.check_integrity()
    pool.check_integrity([table, [0]])
    with pytest.raises(PoolIntegrityError, match="references to block 0: 2 != 1"):
        pool.check_integrity([table])
    with pytest.raises(PoolIntegrityError, match="references to block 2: 0 != 1"):
        pool.check_integrity([table, [0, 2]])


@pytest.mark.parametrize(
    ("break_books", "message"),
    [
        ("allocator._plain_free.append(3)", "counted and listed: 7 != 6"),
        ("allocator._ref_counts[0] = 0", "without a reference: .*2, .* != .*0, 2"),
        ("allocator._hash_by_block[1] = b'b'", "found by hash"),
        ("allocator._cached[2] = allocator._plain_free.remove(2)", r"with a hash: \[2\] != \[\]"),
        ("pool._memory.num_bytes += 1", "bytes of memory and of all blocks: 65537 != 65536"),
    ],
)
def test_integrity_finds_broken_books(pool: HostKvPool, break_books: str, message: str) -> None:
    pool.allocate(2)
    pool.register(1, b"a")
    exec(break_books, {"pool": pool, "allocator": pool._allocator})
    with pytest.raises(PoolIntegrityError, match=message):
        pool.check_integrity()


class PoolAgainstModel(RuleBasedStateMachine):
    """The model keeps a number a slot, a set of hashes and a clock, and searches."""

    NUM_BLOCKS = 6
    HASHES = (b"a", b"b", b"c", b"d")

    @initialize(element=st.sampled_from(ELEMENTS))
    def open_pool(self, element: Element) -> None:
        self.element = element
        self.pool = make_pool(element, self.NUM_BLOCKS, num_kv_heads=1)
        self.tables: list[list[int]] = []
        self.hash_of: dict[int, bytes] = {}
        self.freed_at: dict[int, int] = {}
        self.num_frees = 0
        shape = (2, self.NUM_BLOCKS, 2, 1, 16, 16)
        self.contents = np.full(shape, np.nan)
        """NaN where nothing was written."""

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()

    def held(self) -> set[int]:
        return {block_id for table in self.tables for block_id in table}

    def draw_writable(self, data: st.DataObject) -> list[int]:
        table = data.draw(st.sampled_from(self.tables))
        return [block_id for block_id in table if block_id not in self.hash_of]

    @rule(num_blocks=st.integers(1, 4))
    def allocate(self, num_blocks: int) -> None:
        unheld = set(range(self.NUM_BLOCKS)) - self.held()
        cached = sorted(unheld & self.hash_of.keys(), key=self.freed_at.__getitem__)
        in_order = sorted(unheld - self.hash_of.keys()) + cached
        assert self.pool.can_allocate(num_blocks) == (num_blocks <= len(in_order))
        if num_blocks > len(in_order):
            with pytest.raises(PoolFull):
                self.pool.allocate(num_blocks)
            return
        table = self.pool.allocate(num_blocks)
        assert table == in_order[:num_blocks]
        for block_id in table:
            self.hash_of.pop(block_id, None)
        self.contents[:, table] = np.nan
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.free(np.array(table, dtype=np.int32))
        for block_id in reversed(table):
            if block_id not in self.held():
                self.num_frees += 1
                self.freed_at[block_id] = self.num_frees

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), block_hash=st.sampled_from(HASHES))
    def register(self, data: st.DataObject, block_hash: bytes) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.held())))
        if self.hash_of.get(block_id, block_hash) != block_hash:
            with pytest.raises(ValueError, match="has the hash"):
                self.pool.register(block_id, block_hash)
            return
        self.pool.register(block_id, block_hash)
        if block_hash not in self.hash_of.values():
            self.hash_of[block_id] = block_hash

    @rule(chain=st.lists(st.sampled_from(HASHES), max_size=4))
    def share(self, chain: list[bytes]) -> None:
        block_of = {block_hash: block_id for block_id, block_hash in self.hash_of.items()}
        expected: list[int] = []
        while len(expected) < len(chain) and chain[len(expected)] in block_of:
            expected.append(block_of[chain[len(expected)]])
        assert self.pool.share(chain) == expected
        if expected:
            self.tables.append(expected)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), layer=st.integers(0, 1), seed=st.integers(0, 99))
    def append(self, data: st.DataObject, layer: int, seed: int) -> None:
        table = self.draw_writable(data)
        if not table:
            return
        position = data.draw(st.integers(0, len(table) * 16 - 1))
        k, v = draw_pages(self.pool, 1, seed)[0, 0, :, :, 0]
        self.pool.append(table, layer, position, k, v)
        block_id, slot = table[position // 16], position % 16
        self.contents[layer, block_id, :, :, slot] = read_back(self.element, np.stack((k, v)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), seed=st.integers(0, 99))
    def copy_in(self, data: st.DataObject, seed: int) -> None:
        table = data.draw(st.permutations(self.draw_writable(data)))
        pages = draw_pages(self.pool, len(table), seed)
        self.pool.copy_in(table, pages)
        self.contents[:, table] = read_back(self.element, pages)

    @rule()
    def trim(self) -> None:
        assert self.pool.trim() >= 0

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity(self.tables)
        held = sorted(self.held())
        assert self.pool.num_free_blocks == self.NUM_BLOCKS - len(held)
        assert self.pool.num_cached_blocks == len(self.hash_of.keys() - set(held))
        expected = self.contents[:, held]
        written = ~np.isnan(expected)
        out = self.pool.copy_out(held)
        np.testing.assert_array_equal(out[written], expected[written])


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
