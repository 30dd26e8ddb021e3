"""Whole extents become free, and nobody lets go of anything in vain."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from scheduler import Request, ServiceClass
from scheduler.blocks import BlockManager
from scheduler.vacating import holders_to_vacate

NUM_BLOCKS = 24


def table_of(request: Request) -> list[int]:
    return request.block_ids


def holder(name: str, block_ids: list[int]) -> Request:
    tokens = array("q", [1])
    return Request(name, ServiceClass.BEST_EFFORT, "t", 0.0, tokens, 1, block_ids=block_ids)


def free_extents(books: BlockManager, extent_blocks: int) -> set[int]:
    return {
        extent
        for extent in range(NUM_BLOCKS // extent_blocks)
        if not any(books._ref_counts[extent * extent_blocks :][:extent_blocks])
    }


@given(
    extent_blocks=st.sampled_from([1, 2, 3, 4]),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=10),
    num_extents=st.integers(0, 8),
    num_freeing=st.integers(0, 3),
    shares=st.booleans(),
    data=st.data(),
)
def test_exactly_those_that_hold_what_is_vacated_are_asked(
    extent_blocks: int,
    sizes: list[int],
    num_extents: int,
    num_freeing: int,
    shares: bool,
    data: st.DataObject,
) -> None:
    books = BlockManager(NUM_BLOCKS, 4, extent_blocks)
    books.grant(NUM_BLOCKS)
    holders: list[Request] = []
    for place, size in enumerate(sizes):
        if not books.can_allocate(size):
            break
        block_ids = books.allocate(size)
        if shares and holders:
            shared = data.draw(st.sampled_from(holders)).block_ids[:1]
            books.share(shared)
            block_ids = [*shared, *block_ids]
        holders.append(holder(f"r{place}", block_ids))
    holders = data.draw(st.permutations(holders))
    freeing, candidates = holders[:num_freeing], holders[num_freeing:]
    before = free_extents(books, extent_blocks)
    asked = holders_to_vacate(books, num_extents, map(table_of, freeing), candidates, table_of)
    assert [each for each in candidates if each in asked] == asked
    for each in (*freeing, *asked):
        books.free(each.block_ids)
    vacated = free_extents(books, extent_blocks) - before
    wanted = NUM_BLOCKS // extent_blocks - len(before)
    assert len(vacated) >= min(num_extents, wanted)
    for each in asked:
        assert vacated & {block_id // extent_blocks for block_id in each.block_ids}
