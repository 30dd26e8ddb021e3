"""The pool of KV blocks: who holds which, and which unused ones still hold a known prefix."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from scheduler.free_blocks import FreeBlocks
from scheduler.integrity import IntegrityError, require_equal


class BlockManager:
    """Reference-counted blocks 0..num_blocks-1.

    A block that was published keeps its hash when nobody holds it any more. It then counts as free,
    can be matched and shared again, and is handed out anew only when no plain free block is left,
    least recently used first. Plain free blocks are handed out lowest first.

    With `extent_blocks` the pool has none of its blocks at first: extents of so many are granted
    and withdrawn while it is in use. Without, it has all of them for good.
    """

    def __init__(self, num_blocks: int, block_size: int, extent_blocks: int | None = None) -> None:
        self.num_blocks = num_blocks
        """That it may have at most."""
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._plain_free = FreeBlocks(num_blocks, extent_blocks or 1)
        if extent_blocks is None:
            self._plain_free.grant(num_blocks)
        self._cached_free: OrderedDict[int, None] = OrderedDict()
        self._block_by_hash: dict[bytes, int] = {}
        self._hash_by_block: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return (
            f"BlockManager({self.num_used} used, {len(self._plain_free)} free, "
            f"{len(self._cached_free)} free and cached)"
        )

    @property
    def num_free(self) -> int:
        return len(self._plain_free) + len(self._cached_free)

    @property
    def num_used(self) -> int:
        return self.num_granted - self.num_free

    @property
    def num_cached(self) -> int:
        """Free blocks that hold a known prefix."""
        return len(self._cached_free)

    @property
    def num_granted(self) -> int:
        """Blocks that it has now, held and free."""
        return self._plain_free.num_granted_extents * self._plain_free.extent_blocks

    @property
    def extent_blocks(self) -> int:
        return self._plain_free.extent_blocks

    def grant(self, num_extents: int) -> list[int]:
        """Have so many extents more, or all there are; which ones, and their blocks are free."""
        return self._plain_free.grant(num_extents)

    def revoke(self, extents: Iterable[int]) -> None:
        """Extents that were granted just now, and of which nobody has a block yet, are not."""
        self._plain_free.revoke(extents)

    def withdraw(self, num_extents: int) -> list[int]:
        """Have so many extents less; which ones, fewer where held blocks are in all others.

        What their blocks hold is known no more. Those that hold no known prefix go first, then the
        least recently used.
        """
        withdrawn = self._plain_free.withdraw(num_extents)
        num_more = num_extents - len(withdrawn)
        if num_more:
            for extent in self._evictable_extents(num_more):
                for block_id in self._plain_free.blocks_of(extent):
                    if block_id in self._cached_free:
                        del self._cached_free[block_id]
                        self._forget_hash(block_id)
                        self._plain_free.add(block_id)
            withdrawn += self._plain_free.withdraw(num_more)
        return withdrawn

    def _evictable_extents(self, num_extents: int) -> list[int]:
        """Extents without held blocks in which a cached one is, the oldest one's first."""
        extents: dict[int, None] = {}
        blocks_of = self._plain_free.blocks_of
        for block_id in self._cached_free:
            if len(extents) == num_extents:
                break
            extent = block_id // self._plain_free.extent_blocks
            if extent not in extents and not any(self._ref_counts[b] for b in blocks_of(extent)):
                extents[extent] = None
        return list(extents)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= self.num_free

    def allocate(self, num_blocks: int) -> list[int]:
        """Hand out blocks with one reference each; ask `can_allocate` first."""
        assert self.can_allocate(num_blocks), f"{num_blocks} blocks asked, {self.num_free} free"
        return [self._take_free_block() for _ in range(num_blocks)]

    def _take_free_block(self) -> int:
        if self._plain_free:
            block_id = self._plain_free.pop()
        else:
            block_id, _ = self._cached_free.popitem(last=False)
            self._forget_hash(block_id)
        self._ref_counts[block_id] = 1
        return block_id

    def _forget_hash(self, block_id: int) -> None:
        del self._block_by_hash[self._hash_by_block.pop(block_id)]

    def match_prefix(self, block_hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of a hash chain; they are not held until shared."""
        matched: list[int] = []
        for block_hash in block_hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                break
            matched.append(block_id)
        return matched

    def share(self, block_ids: Sequence[int]) -> None:
        """Take one more reference on each block, reviving those that were free and cached."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._cached_free[block_id]
            self._ref_counts[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Drop one reference on each block of a table."""
        # From the end, so that of a cached prefix the deepest block is evicted first.
        for block_id in reversed(block_ids):
            self._ref_counts[block_id] -= 1
            assert self._ref_counts[block_id] >= 0, f"block {block_id} freed twice"
            if self._ref_counts[block_id] == 0:
                if block_id in self._hash_by_block:
                    self._cached_free[block_id] = None
                else:
                    self._plain_free.add(block_id)

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Make a held, fully written block findable; where the hash is known already, keep that."""
        assert self._ref_counts[block_id] > 0, f"block {block_id} published while free"
        if block_hash in self._block_by_hash:
            return
        assert block_id not in self._hash_by_block, f"block {block_id} has another hash already"
        self._block_by_hash[block_hash] = block_id
        self._hash_by_block[block_id] = block_hash

    def count_freed(self, block_ids: Sequence[int], released: "Counter[int]") -> int:
        """Blocks that would become free if this table were freed after those in `released`.

        Adds the table to `released`, so that tables sharing blocks are counted right in turn.
        """
        released.update(block_ids)
        return sum(released[block_id] == self._ref_counts[block_id] for block_id in block_ids)

    def extents_freed(self, block_ids: Sequence[int], released: "Counter[int]") -> set[int]:
        """Extents of which nobody would hold a block any more, were this table freed after those
        in `released`; adds it."""
        released.update(block_ids)
        at_once, blocks_of = self._plain_free.extent_blocks, self._plain_free.blocks_of
        freed = {each // at_once for each in block_ids if released[each] == self._ref_counts[each]}
        if at_once == 1:
            return freed
        return {
            extent
            for extent in freed
            if all(released[each] == self._ref_counts[each] for each in blocks_of(extent))
        }

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise IntegrityError unless `owners`, all block tables alive, explain every reference."""
        held: Counter[int] = Counter()
        for block_ids in owners:
            held.update(block_ids)
        for block_id, ref_count in enumerate(self._ref_counts):
            require_equal(f"references to block {block_id}", ref_count, held[block_id])
        free = {*self._plain_free, *self._cached_free}
        require_equal("free blocks listed twice", len(free), self.num_free)
        require_equal("free blocks", len(free), self.num_granted - len(held))
        granted = {
            block_id for block_id in range(self.num_blocks) if self._plain_free.is_granted(block_id)
        }
        require_equal("blocks held or free, not granted", ({*free, *held}) - granted, set())
        require_equal("blocks granted", len(granted), self.num_granted)
        if still_held := free & held.keys():
            raise IntegrityError(f"blocks both free and held: {sorted(still_held)}")
        by_hash = {block_id: block_hash for block_hash, block_id in self._block_by_hash.items()}
        require_equal("blocks found by hash", by_hash, self._hash_by_block)
        known_free = free & self._hash_by_block.keys()
        require_equal("free blocks with a hash", known_free, set(self._cached_free))
