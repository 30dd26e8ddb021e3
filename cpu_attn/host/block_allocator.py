"""Which blocks of a pool are held, free, or free with contents that may be shared again."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class PoolFull(Exception):
    """More blocks were asked for than are free."""

    def __init__(self, num_asked: int, num_free: int, num_blocks: int) -> None:
        super().__init__(
            f"{num_asked} blocks asked, {num_free} of {num_blocks} are free: give the pool more "
            "bytes or free blocks first"
        )
        self.num_asked = num_asked
        self.num_free = num_free


class PoolIntegrityError(AssertionError):
    """Two numbers of a pool that must agree do not. Raised also under `python -O`."""


def require_equal(what: str, actual: object, expected: object) -> None:
    """Raises PoolIntegrityError, naming both sides, unless they are equal."""
    if actual != expected:
        raise PoolIntegrityError(f"{what}: {actual!r} != {expected!r}")


class BlockAllocator:
    """Reference-counted blocks 0..num_blocks-1, for one thread at a time.

    A block with a hash keeps it when nobody holds it any more: it is cached, counts as free, and is
    handed out anew only when no other free block is left, least recently freed first. Other free
    blocks are handed out lowest first, so that memory in use stays together. A call that raises has
    changed nothing.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._plain_free = list(range(num_blocks))
        """A heap."""
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_by_hash: dict[bytes, int] = {}
        self._hash_by_block: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return (
            f"BlockAllocator({self.num_blocks - self.num_free} held, "
            f"{len(self._plain_free)} free, {self.num_cached} free and cached)"
        )

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, the cached ones among them."""
        return len(self._plain_free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= self.num_free

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks with one reference each and without a hash.

        Raises PoolFull where too few are free, ValueError where `num_blocks` is negative.
        """
        if num_blocks < 0:
            raise ValueError(f"num_blocks {num_blocks}: 0 or more are allowed")
        if not self.can_allocate(num_blocks):
            raise PoolFull(num_blocks, self.num_free, self.num_blocks)
        return [self._take() for _ in range(num_blocks)]

    def _take(self) -> int:
        if self._plain_free:
            block_id = heapq.heappop(self._plain_free)
        else:
            block_id, _ = self._cached.popitem(last=False)
            del self._block_by_hash[self._hash_by_block.pop(block_id)]
        self._ref_counts[block_id] = 1
        return block_id

    def free(self, block_ids: Sequence[int]) -> None:
        """Drops one reference for each time that a block is named.

        Of blocks freed together the last one counts as freed first: of a cached prefix the deepest
        block then goes first. Raises ValueError for blocks that are not held that often.
        """
        self.require_held(block_ids)
        for block_id, num_drops in Counter(block_ids).items():
            if num_drops > self._ref_counts[block_id]:
                raise ValueError(
                    f"block_ids: block {block_id} is freed {num_drops} times and held "
                    f"{self._ref_counts[block_id]} times"
                )
        for block_id in reversed(block_ids):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id]:
                continue
            if block_id in self._hash_by_block:
                self._cached[block_id] = None
            else:
                heapq.heappush(self._plain_free, block_id)

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Makes a held block findable; where another one has the hash already, that one stays.

        Raises ValueError where the block is not held or has another hash.
        """
        self.require_held([block_id])
        known = self._hash_by_block.get(block_id, block_hash)
        if known != block_hash:
            raise ValueError(f"block {block_id} has the hash {known.hex()}, not {block_hash.hex()}")
        if self._block_by_hash.setdefault(block_hash, block_id) == block_id:
            self._hash_by_block[block_id] = block_hash

    def share(self, block_hashes: Iterable[bytes]) -> list[int]:
        """One more reference on each block of the longest known prefix of `block_hashes`."""
        block_ids = []
        for block_hash in block_hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        # Only now, for what comes of hashes that are none must not keep references.
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._cached[block_id]
            self._ref_counts[block_id] += 1
        return block_ids

    def has_hash(self, block_id: int) -> bool:
        return block_id in self._hash_by_block

    def require_held(self, block_ids: Iterable[int]) -> None:
        """Raises ValueError where a block is not in the pool or held by nobody."""
        for block_id in block_ids:
            if not 0 <= block_id < self.num_blocks:
                raise ValueError(
                    f"block_ids: block {block_id} is outside the pool's 0..{self.num_blocks - 1}"
                )
            if self._ref_counts[block_id] == 0:
                raise ValueError(f"block_ids: block {block_id} is free; allocate or share it first")

    def unused_blocks(self) -> list[int]:
        """Free blocks whose contents nobody can ask for any more, in order."""
        return sorted(self._plain_free)

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Raises PoolIntegrityError, with both numbers, where the books disagree.

        Given all `tables` of blocks that are held anywhere, they must explain every reference.
        """
        free = {*self._plain_free, *self._cached}
        require_equal("free blocks counted and listed", self.num_free, len(free))
        unheld = {block for block, references in enumerate(self._ref_counts) if references == 0}
        require_equal("free blocks and blocks without a reference", sorted(free), sorted(unheld))
        by_hash = {block_id: block_hash for block_hash, block_id in self._block_by_hash.items()}
        require_equal("blocks found by hash and hashes of blocks", by_hash, self._hash_by_block)
        known_free = sorted(free & self._hash_by_block.keys())
        require_equal("cached blocks and free blocks with a hash", sorted(self._cached), known_free)
        if tables is None:
            return
        held = Counter(block_id for table in tables for block_id in table)
        for block_id, num_references in enumerate(self._ref_counts):
            require_equal(f"references to block {block_id}", num_references, held[block_id])
