"""The host's KV blocks without the memory: the same books that the host's pool keeps."""

from collections.abc import Iterable, Sequence

from cpu_attn.host.block_allocator import BlockAllocator


class SimulatedHostBlocks:
    """Satisfies `scheduler.HostBlocks` with the allocator of the real pool."""

    def __init__(self, num_blocks: int) -> None:
        self._allocator = BlockAllocator(num_blocks)
        self.num_blocks = self.num_granted_blocks = num_blocks

    @property
    def num_cached_blocks(self) -> int:
        return self._allocator.num_cached

    @property
    def num_free_blocks(self) -> int:
        return self._allocator.num_free

    def can_allocate(self, num_blocks: int) -> bool:
        return self._allocator.can_allocate(num_blocks)

    def allocate(self, num_blocks: int) -> list[int]:
        return self._allocator.allocate(num_blocks)

    def free(self, block_ids: Iterable[int]) -> None:
        self._allocator.free(list(block_ids))

    def register(self, block_id: int, block_hash: bytes) -> None:
        self._allocator.register(block_id, block_hash)

    def share(self, block_hashes: Iterable[bytes]) -> list[int]:
        return self._allocator.share(block_hashes)

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        self._allocator.check_integrity(tables)
