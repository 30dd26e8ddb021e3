"""The block pool against a naive model, and block hashes against their definition."""

from array import array
from collections import Counter
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler import IntegrityError
from scheduler.block_hash import extend_block_hashes, hash_block
from scheduler.blocks import BlockManager


def test_allocates_each_block_once_and_no_more_than_there_are() -> None:
    blocks = BlockManager(4, 16)
    first = blocks.allocate(3)
    assert len(set(first)) == 3
    assert blocks.can_allocate(1) and not blocks.can_allocate(2)
    assert (blocks.num_free, blocks.num_used) == (1, 3)
    with pytest.raises(AssertionError, match="2 blocks asked, 1 free"):
        blocks.allocate(2)


def test_shared_block_is_free_only_when_every_holder_let_go() -> None:
    blocks = BlockManager(2, 16)
    table = blocks.allocate(1)
    blocks.share(table)
    blocks.free(table)
    assert blocks.num_used == 1
    blocks.free(table)
    assert blocks.num_used == 0
    with pytest.raises(AssertionError, match="freed twice"):
        blocks.free(table)


def test_matches_the_longest_chain_only() -> None:
    blocks = BlockManager(4, 16)
    table = blocks.allocate(3)
    for block_id, block_hash in zip(table, (b"a", b"b", b"c"), strict=True):
        blocks.publish(block_id, block_hash)
    assert blocks.match_prefix([b"a", b"b", b"x", b"c"]) == table[:2]
    assert blocks.match_prefix([b"x", b"a"]) == []


def test_first_published_block_keeps_the_hash() -> None:
    blocks = BlockManager(2, 16)
    first, second = blocks.allocate(2)
    blocks.publish(first, b"a")
    blocks.publish(second, b"a")
    assert blocks.match_prefix([b"a"]) == [first]
    blocks.free([second])
    blocks.free([first])
    assert blocks.match_prefix([b"a"]) == [first]
    blocks.check_integrity([])


def test_evicts_plain_blocks_first_then_the_least_recently_used_tail() -> None:
    blocks = BlockManager(5, 16)
    old, new = blocks.allocate(2), blocks.allocate(2)
    for block_id in [*old, *new]:
        blocks.publish(block_id, b"%d" % block_id)
    blocks.free(old)
    blocks.free(new)
    assert blocks.allocate(1) == [4]
    assert blocks.allocate(2) == [old[1], old[0]]
    assert blocks.match_prefix([b"%d" % new[0], b"%d" % new[1]]) == new
    assert blocks.match_prefix([b"%d" % old[0]]) == []


def test_revived_block_is_not_evicted() -> None:
    blocks = BlockManager(2, 16)
    table = blocks.allocate(2)
    blocks.publish(table[0], b"a")
    blocks.free(table)
    blocks.share(blocks.match_prefix([b"a"]))
    assert blocks.num_free == 1
    assert blocks.allocate(1) == [table[1]]


def test_counts_what_freeing_tables_in_turn_would_free() -> None:
    blocks = BlockManager(8, 16)
    prefix = blocks.allocate(2)
    blocks.share(prefix)
    first, second = prefix + blocks.allocate(1), prefix + blocks.allocate(3)
    released: Counter[int] = Counter()
    assert blocks.count_freed(first, released) == 1
    assert blocks.count_freed(second, released) == 5


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ([[0, 1]], r"references to block 1: 2 != 1"),
        ([[0, 1], [1], [2]], r"references to block 2: 0 != 1"),
        ([[1], [1]], r"references to block 0: 1 != 0"),
    ],
)
def test_integrity_names_both_numbers(owners: list[list[int]], message: str) -> None:
    blocks = BlockManager(3, 16)
    blocks.share(blocks.allocate(2)[1:])
    blocks.check_integrity([[0, 1], [1]])
    with pytest.raises(IntegrityError, match=message):
        blocks.check_integrity(owners)


def test_blocks_in_use_stay_together() -> None:
    blocks = BlockManager(6, 16)
    table = blocks.allocate(6)
    blocks.free([table[4], table[1], table[3]])
    assert blocks.allocate(2) == [1, 3]


def test_extents_that_come_to_nothing_are_as_if_never_granted() -> None:
    """Those that it had before, free ones too, stay."""
    blocks = BlockManager(8, 16, extent_blocks=2)
    blocks.grant(2)
    table = blocks.allocate(1)
    granted = blocks.grant(2)
    blocks.revoke(granted)
    assert (blocks.num_granted, blocks.num_free) == (4, 3)
    blocks.check_integrity([table])
    assert blocks.grant(2) == granted
    with pytest.raises(AssertionError, match="held"):
        blocks.revoke([0])


def test_a_pool_of_extents_has_what_was_granted() -> None:
    blocks = BlockManager(8, 16, extent_blocks=2)
    assert (blocks.num_granted, blocks.num_free) == (0, 0)
    assert blocks.grant(3) == [0, 1, 2]
    assert (blocks.num_granted, blocks.num_free, blocks.num_used) == (6, 6, 0)
    table = blocks.allocate(3)
    assert table == [0, 1, 2]
    assert blocks.withdraw(9) == [2], "the others are held in part"
    assert (blocks.num_granted, blocks.num_free, blocks.num_used) == (4, 1, 3)
    assert blocks.grant(9) == [2, 3], "there are no more"
    blocks.check_integrity([table])


def test_withdrawing_forgets_prefixes_the_oldest_first_and_never_held_ones() -> None:
    blocks = BlockManager(8, 16, extent_blocks=2)
    blocks.grant(4)
    tables = [blocks.allocate(2) for _ in range(4)]
    for table in tables[:3]:
        for block_id in table:
            blocks.publish(block_id, b"%d" % block_id)
    blocks.free(tables[3])
    blocks.free(tables[1])
    blocks.free(tables[0])
    blocks.free(tables[2][:1])
    assert blocks.withdraw(1) == [3], "nothing is known of it"
    assert blocks.withdraw(1) == [1], "it was used before the other"
    assert blocks.match_prefix([b"2"]) == []
    assert blocks.match_prefix([b"0", b"1"]) == tables[0]
    assert blocks.match_prefix([b"4"]) == tables[2][:1]
    assert blocks.withdraw(9) == [0]
    blocks.check_integrity([tables[2][1:]])


def test_block_hash_covers_everything_before_it() -> None:
    tokens = array("q", range(12))
    hashes: list[bytes] = []
    extend_block_hashes(hashes, tokens, 1, 4)
    extend_block_hashes(hashes, tokens, 3, 4)
    expected = b""
    for block in range(3):
        expected = sha256(expected + tokens[block * 4 : block * 4 + 4].tobytes()).digest()
        assert hashes[block] == expected
    assert hash_block(hashes[0], b"same") != hash_block(hashes[1], b"same")
    with pytest.raises(AssertionError, match="block 3 has 0 of 4 tokens"):
        extend_block_hashes(hashes, tokens, 4, 4)


def test_blocks_of_two_tenants_differ() -> None:
    tokens = array("q", range(8))
    of_tenant: dict[str, list[bytes]] = {"": [], "acme": [], "globex": []}
    for tenant, hashes in of_tenant.items():
        extend_block_hashes(hashes, tokens, 2, 4, tenant)
    assert len({hash_ for hashes in of_tenant.values() for hash_ in hashes}) == 6


@given(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=9))
def test_hashes_are_equal_exactly_as_far_as_prefixes_are(a: list[int], b: list[int]) -> None:
    chains = []
    for tokens in (a, b):
        hashes: list[bytes] = []
        extend_block_hashes(hashes, array("q", tokens), len(tokens) // 2, 2)
        chains.append(hashes)
    for num_blocks, pair in enumerate(zip(*chains, strict=False), start=1):
        assert (pair[0] == pair[1]) == (a[: 2 * num_blocks] == b[: 2 * num_blocks])


class PoolAgainstModel(RuleBasedStateMachine):
    """The model keeps a use time per block and searches; the pool keeps lists."""

    NUM_BLOCKS = 6

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockManager(self.NUM_BLOCKS, 4)
        self.granted = set(range(self.NUM_BLOCKS))
        self.tables: list[list[int]] = []
        self.hash_of: dict[int, bytes] = {}
        self.freed_at: dict[int, int] = {}
        self.num_frees = 0

    def held(self) -> set[int]:
        return {block_id for table in self.tables for block_id in table}

    @rule(num_blocks=st.integers(1, 4))
    def allocate(self, num_blocks: int) -> None:
        free = self.granted - self.held()
        assert self.pool.can_allocate(num_blocks) == (num_blocks <= len(free))
        if num_blocks > len(free):
            return
        table = self.pool.allocate(num_blocks)
        assert len(set(table)) == num_blocks and free.issuperset(table)
        cached = sorted(free & self.hash_of.keys(), key=self.freed_at.__getitem__)
        num_evicted = max(0, num_blocks - (len(free) - len(cached)))
        assert set(table) & set(cached) == set(cached[:num_evicted])
        for block_id in table:
            self.hash_of.pop(block_id, None)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.free(table)
        for block_id in reversed(table):
            if block_id not in self.held():
                self.num_frees += 1
                self.freed_at[block_id] = self.num_frees

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), block_hash=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, data: st.DataObject, block_hash: bytes) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.held())))
        if block_hash in self.hash_of.values():
            self.pool.publish(block_id, block_hash)
        elif block_id not in self.hash_of:
            self.pool.publish(block_id, block_hash)
            self.hash_of[block_id] = block_hash

    @rule(chain=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=4, unique=True))
    def match_and_share(self, chain: list[bytes]) -> None:
        expected = []
        for block_hash in chain:
            found = [block_id for block_id, known in self.hash_of.items() if known == block_hash]
            if not found:
                break
            expected += found
        assert self.pool.match_prefix(chain) == expected
        if expected:
            self.pool.share(expected)
            self.tables.append(expected)

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity(self.tables)
        assert self.pool.num_used == len(self.held())
        assert self.pool.num_free == len(self.granted) - len(self.held())
        assert self.pool.num_granted == len(self.granted)
        assert self.hash_of.keys() <= self.granted


class ElasticPoolAgainstModel(PoolAgainstModel):
    """The same while extents of blocks come and go."""

    EXTENT_BLOCKS = 2

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockManager(self.NUM_BLOCKS, 4, self.EXTENT_BLOCKS)
        self.granted = set()

    def blocks_of(self, extents: list[int]) -> set[int]:
        return {
            extent * self.EXTENT_BLOCKS + place
            for extent in extents
            for place in range(self.EXTENT_BLOCKS)
        }

    @rule(num_extents=st.integers(0, 4))
    def grant(self, num_extents: int) -> None:
        num_missing = (self.NUM_BLOCKS - len(self.granted)) // self.EXTENT_BLOCKS
        extents = self.pool.grant(num_extents)
        assert len(set(extents)) == min(num_extents, num_missing)
        new = self.blocks_of(extents)
        assert not new & self.granted and new <= set(range(self.NUM_BLOCKS))
        self.granted |= new

    @rule(num_extents=st.integers(0, 4))
    def withdraw(self, num_extents: int) -> None:
        pinned = {block_id // self.EXTENT_BLOCKS for block_id in self.held()}
        num_unpinned = len(self.granted) // self.EXTENT_BLOCKS - len(pinned)
        extents = self.pool.withdraw(num_extents)
        assert len(extents) == min(num_extents, num_unpinned)
        gone = self.blocks_of(extents)
        assert gone <= self.granted - self.held()
        plain = {b for b in self.granted - gone - self.held() if b not in self.hash_of}
        spared = {b for b in plain if self.blocks_of([b // self.EXTENT_BLOCKS]) <= plain}
        if gone & self.hash_of.keys():
            assert not spared, "a known prefix went before what holds nothing"
        self.granted -= gone
        for block_id in gone:
            self.hash_of.pop(block_id, None)


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

TestElasticPoolAgainstModel = ElasticPoolAgainstModel.TestCase
TestElasticPoolAgainstModel.settings = TestPoolAgainstModel.settings
