"""The host's KV blocks as the policy sees them."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from scheduler.integrity import require_equal


class HostBlocks(Protocol):
    """Reference-counted blocks, as many tokens each as a device block; `cpu_attn` has one.

    A registered block that nobody holds stays cached and can be shared again until it is needed.
    """

    @property
    def num_blocks(self) -> int:
        """Most that there can be."""

    @property
    def num_granted_blocks(self) -> int:
        """Held and free ones; all, unless models share the host's memory."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated, the cached ones among them."""

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks that can still be shared."""

    def can_allocate(self, num_blocks: int) -> bool: ...

    def allocate(self, num_blocks: int) -> list[int]:
        """One reference on each; ask `can_allocate` first."""

    def free(self, block_ids: Iterable[int]) -> None:
        """Drops one reference on each."""

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Says that a block is full and final, so that `share` may find it."""

    def share(self, block_hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest known prefix of the hashes, with a reference more on each."""

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Raises where `tables`, all that hold blocks, do not explain every reference."""


class NoHostBlocks:
    """A pool without blocks, for a model that does not piggyback."""

    num_blocks = 0
    num_granted_blocks = 0
    num_free_blocks = 0
    num_cached_blocks = 0

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= 0

    def allocate(self, num_blocks: int) -> list[int]:
        assert num_blocks == 0, f"{num_blocks} host blocks asked of none"
        return []

    def free(self, block_ids: Iterable[int]) -> None:
        assert not list(block_ids), "there are no host blocks"

    def register(self, block_id: int, block_hash: bytes) -> None:
        raise AssertionError("there are no host blocks")

    def share(self, block_hashes: Iterable[bytes]) -> list[int]:
        return []

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        require_equal("tables of host blocks", list(tables or ()), [])
