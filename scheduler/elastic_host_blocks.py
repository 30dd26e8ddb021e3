"""A model's host blocks where models share the host's KV memory: extents of them come and go."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from scheduler.blocks import BlockManager


class ElasticHostBlocks:
    """`HostBlocks` by the books that the device's blocks have.

    There are none at first; extents of them are granted and withdrawn while others are in use.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        extent_blocks: int,
        num_reachable: Callable[[], int],
    ) -> None:
        """`num_blocks`, a multiple of `extent_blocks`, is what there are addresses for;
        `num_reachable` tells how many of them the model can ever have beside others."""
        self._books = BlockManager(num_blocks, block_size, extent_blocks)
        self._num_reachable = num_reachable

    @property
    def num_blocks(self) -> int:
        """That the model can have at most, whatever others want."""
        return min(self._books.num_blocks, self._num_reachable())

    @property
    def num_addresses(self) -> int:
        """That it could have while nobody else wanted any."""
        return self._books.num_blocks

    @property
    def num_granted_blocks(self) -> int:
        return self._books.num_granted

    @property
    def num_free_blocks(self) -> int:
        return self._books.num_free

    @property
    def num_used_blocks(self) -> int:
        return self._books.num_used

    @property
    def num_cached_blocks(self) -> int:
        return self._books.num_cached

    @property
    def extent_blocks(self) -> int:
        return self._books.extent_blocks

    def can_allocate(self, num_blocks: int) -> bool:
        return self._books.can_allocate(num_blocks)

    def allocate(self, num_blocks: int) -> list[int]:
        return self._books.allocate(num_blocks)

    def free(self, block_ids: Iterable[int]) -> None:
        self._books.free(list(block_ids))

    def register(self, block_id: int, block_hash: bytes) -> None:
        self._books.publish(block_id, block_hash)

    def share(self, block_hashes: Iterable[bytes]) -> list[int]:
        matched = self._books.match_prefix(list(block_hashes))
        self._books.share(matched)
        return matched

    def grant(self, num_extents: int) -> list[int]:
        """Have so many extents more, or all there are; which ones."""
        return self._books.grant(num_extents)

    def withdraw(self, num_extents: int) -> list[int]:
        """Have so many extents less, or as many as nobody holds; which ones."""
        return self._books.withdraw(num_extents)

    def extents_freed(self, block_ids: Sequence[int], released: "Counter[int]") -> set[int]:
        """Extents of which nobody would hold a block any more, were this table freed after those
        in `released`; adds it."""
        return self._books.extents_freed(block_ids, released)

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        if tables is not None:
            self._books.check_integrity(tables)
