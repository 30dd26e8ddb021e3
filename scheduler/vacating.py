"""Who has to let go of blocks so that whole extents of a pool become free."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from scheduler.request import Request


class ExtentBooks(Protocol):
    """Blocks that come and go by extents."""

    @property
    def extent_blocks(self) -> int: ...

    def extents_freed(self, block_ids: Sequence[int], released: "Counter[int]") -> set[int]:
        """Extents of which nobody would hold a block any more, were this table freed after those
        in `released`; adds it."""
        ...


def holders_to_vacate(
    books: ExtentBooks,
    num_extents: int,
    freeing: Iterable[Sequence[int]],
    candidates: Iterable[Request],
    table_of: Callable[[Request], Sequence[int]],
) -> list[Request]:
    """Those of `candidates`, in their order, that hold blocks of the extents to be vacated: the
    first that are free once candidates let go one after the other, and `freeing` tables before.

    Whoever holds nothing there would let go of it in vain, as what is free in an extent that
    others hold in part cannot go to another model.
    """
    released: Counter[int] = Counter()
    vacated: set[int] = set()
    for table in freeing:
        vacated |= books.extents_freed(table, released)
    asked = []
    for candidate in candidates:
        if len(vacated) >= num_extents:
            break
        vacated |= books.extents_freed(table_of(candidate), released)
        asked.append(candidate)
    at_once = books.extent_blocks
    return [
        candidate
        for candidate in asked
        if any(block_id // at_once in vacated for block_id in table_of(candidate))
    ]
