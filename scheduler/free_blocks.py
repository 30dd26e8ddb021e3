"""Blocks that nobody holds and that hold nothing known, of the extents that a pool has now."""

from collections.abc import Iterable, Iterator

_YES, _NO = 1, 0


class FreeBlocks:
    """Blocks 0..num_blocks-1 come in extents of `extent_blocks`, which are granted or are not.

    Only blocks of granted extents can be free. The lowest is handed out first and the highest
    extents are withdrawn first, so that memory in use stays together.
    """

    def __init__(self, num_blocks: int, extent_blocks: int) -> None:
        """No extent is granted yet; `num_blocks` is a multiple of `extent_blocks`."""
        assert num_blocks % extent_blocks == 0, f"{num_blocks} blocks in {extent_blocks}s"
        self.extent_blocks = extent_blocks
        num_extents = num_blocks // extent_blocks
        # Bytes, as the search for the first or last set one runs at the speed of memory.
        self._is_free = bytearray(num_blocks)
        self._is_whole = bytearray(num_extents)
        """Of extents all of whose blocks are free."""
        self._is_granted = bytearray(num_extents)
        self._num_in = [0] * num_extents
        self._num_free = 0
        self._lowest = 0
        """No block below it is free."""
        self.num_granted_extents = 0

    def __len__(self) -> int:
        return self._num_free

    def __iter__(self) -> Iterator[int]:
        return (block_id for block_id, is_free in enumerate(self._is_free) if is_free)

    def add(self, block_id: int) -> None:
        """A block of a granted extent is free from now on."""
        extent = block_id // self.extent_blocks
        assert self._is_granted[extent] and not self._is_free[block_id], f"block {block_id}"
        self._is_free[block_id] = _YES
        self._num_free += 1
        self._lowest = min(self._lowest, block_id)
        self._num_in[extent] += 1
        if self._num_in[extent] == self.extent_blocks:
            self._is_whole[extent] = _YES

    def pop(self) -> int:
        """The lowest free block, which is free no more; there must be one."""
        block_id = self._is_free.find(_YES, self._lowest)
        assert block_id >= 0, "no block is free"
        self._lowest = block_id + 1
        self._is_free[block_id] = _NO
        self._num_free -= 1
        extent = block_id // self.extent_blocks
        self._num_in[extent] -= 1
        self._is_whole[extent] = _NO
        return block_id

    def grant(self, num_extents: int) -> list[int]:
        """Free the blocks of so many extents that were not granted, or of all there are."""
        granted: list[int] = []
        while len(granted) < num_extents:
            extent = self._is_granted.find(_NO, granted[-1] + 1 if granted else 0)
            if extent < 0:
                break
            self._is_granted[extent] = _YES
            granted.append(extent)
            for block_id in self.blocks_of(extent):
                self.add(block_id)
        self.num_granted_extents += len(granted)
        return granted

    def withdraw(self, num_extents: int) -> list[int]:
        """Take so many extents back, all of whose blocks are free, or as many as there are."""
        withdrawn: list[int] = []
        while len(withdrawn) < num_extents:
            extent = self._is_whole.rfind(_YES)
            if extent < 0:
                break
            self._take(extent)
            withdrawn.append(extent)
        return withdrawn

    def revoke(self, extents: Iterable[int]) -> None:
        """Take these back, all of whose blocks are free."""
        for extent in extents:
            assert self._is_whole[extent], f"extent {extent} is held, or not granted"
            self._take(extent)

    def _take(self, extent: int) -> None:
        self._is_whole[extent] = self._is_granted[extent] = _NO
        self._num_in[extent] = 0
        for block_id in self.blocks_of(extent):
            self._is_free[block_id] = _NO
        self._num_free -= self.extent_blocks
        self.num_granted_extents -= 1

    def blocks_of(self, extent: int) -> range:
        return range(extent * self.extent_blocks, (extent + 1) * self.extent_blocks)

    def is_granted(self, block_id: int) -> bool:
        return bool(self._is_granted[block_id // self.extent_blocks])
