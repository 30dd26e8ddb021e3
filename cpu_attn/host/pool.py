"""The host's KV pool: paged memory of all layers of a model, under one byte limit."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_attn.host.block_allocator import BlockAllocator, require_equal
from cpu_attn.host.kv_arena import KvArena, consecutive_runs, page_dtype
from cpu_attn.host.settings import PoolMemory
from cpu_attn.host.shared_memory import SharedMemory
from cpu_attn.kv_layout import KvLayout

_MAX_BLOCKS = 2**31 - 1
"""Block tables are int32."""
_PIECE_BYTES = 4 << 20
"""About a millisecond of the kernel's work, where all its pages are small ones."""


class HostKvPool:
    """Blocks of keys and values in a memfd, [num_blocks, num_layers, layer_bytes].

    For one thread at a time. Block ids are as in BlockAllocator: counted by references, shared by
    hash. Arrays that are handed over have the dtype of the layout's element, uint16 bits for
    BFLOAT16; INT8 takes float32, rounds it, and gives float32 back. Methods raise ValueError for
    values that are not allowed, blocks that nobody holds among them, TypeError for types and
    dtypes; a call that raises has changed nothing.
    """

    def __init__(self, layout: KvLayout, max_bytes: int) -> None:
        """Maps as many blocks as `max_bytes` hold; memory is taken as they are written.

        Raises ValueError where that is not one, OSError where the machine cannot map so much.
        """
        max_bytes = operator.index(max_bytes)
        num_blocks = max_bytes // layout.block_bytes
        if not 1 <= num_blocks <= _MAX_BLOCKS:
            raise ValueError(
                f"max_bytes {max_bytes}: a block of {layout.block_size} tokens takes "
                f"{layout.block_bytes} bytes, so from {layout.block_bytes} to "
                f"{_MAX_BLOCKS * layout.block_bytes} are allowed"
            )
        self.layout = layout
        self._memory = _map_memory(num_blocks * layout.block_bytes)
        self._arena: KvArena | None = KvArena(layout, num_blocks, self._memory)
        self._allocator = BlockAllocator(num_blocks)

    def __repr__(self) -> str:
        return f"HostKvPool({self._allocator!r}, {self.resident_bytes} bytes resident)"

    @property
    def fd(self) -> int:
        """Descriptor of the memory, for the process that attends to it; -1 once closed."""
        return self._memory.fd

    @property
    def memory(self) -> PoolMemory:
        """What a HostModel is given; raises ValueError once closed."""
        self._require_open()
        return PoolMemory(self.fd, self.layout, self.num_blocks)

    @property
    def address(self) -> int:
        """Of block 0 in this process."""
        return self._memory.address

    @property
    def words(self) -> NDArray[np.int64]:
        """The memory itself, int64 [num_blocks, num_layers, layer_bytes // 8].

        For copies that do not come through here: nothing is checked. It stays valid after `close`.
        Raises ValueError once closed.
        """
        self._require_open()
        shape = (self.num_blocks, self.layout.num_layers, self.layout.layer_bytes // 8)
        return self._memory.array(np.int64, shape)

    @property
    def num_bytes(self) -> int:
        """Size of the memory, touched or not."""
        return self._memory.num_bytes

    @property
    def resident_bytes(self) -> int:
        """Memory that was touched and not given back."""
        return self._memory.resident_bytes

    @property
    def huge_page_bytes(self) -> int | None:
        """Size of the huge pages that the kernel was willing to use, None where it is not."""
        return self._memory.huge_page_bytes

    @property
    def num_blocks(self) -> int:
        return self._allocator.num_blocks

    @property
    def num_granted_blocks(self) -> int:
        """Blocks that there is memory for: all."""
        return self._allocator.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated, the cached ones among them."""
        return self._allocator.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks whose contents can still be shared."""
        return self._allocator.num_cached

    def can_allocate(self, num_blocks: int) -> bool:
        return self._allocator.can_allocate(num_blocks)

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks to write to, with one reference each; what they hold is undefined.

        Raises PoolFull, with both numbers, where too few are free.
        """
        self._require_open()
        return self._allocator.allocate(operator.index(num_blocks))

    def free(self, block_ids: Iterable[int]) -> None:
        """Drops one reference on each; a registered block that nobody holds stays cached."""
        self._allocator.free(_as_ints(block_ids))

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Says that a block is full and final, so that `share` may find it by its hash.

        Where another block has the hash already, that one stays the one to be found.
        """
        if not isinstance(block_hash, bytes):
            raise TypeError(f"block_hash {block_hash!r}: bytes are needed")
        self._allocator.register(operator.index(block_id), block_hash)

    def share(self, block_hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of the hashes, with a reference more on each."""
        self._require_open()
        return self._allocator.share(block_hashes)

    def append(
        self,
        block_ids: Sequence[int],
        layer: int,
        position: int,
        k: NDArray[Any],
        v: NDArray[Any],
    ) -> None:
        """Writes the token at `position` of a sequence whose table is `block_ids`.

        `k` and `v` are [num_kv_heads, head_dim]. It may be done again. For tests and the odd
        token: the attention kernels append for themselves.
        """
        arena = self._require_open()
        layer, position = operator.index(layer), operator.index(position)
        if not 0 <= layer < self.layout.num_layers:
            raise ValueError(f"layer {layer}: 0..{self.layout.num_layers - 1} are allowed")
        num_tokens = len(block_ids) * self.layout.block_size
        if not 0 <= position < num_tokens:
            raise ValueError(
                f"position {position}: {len(block_ids)} blocks hold {num_tokens} tokens"
            )
        for name, rows in (("k", k), ("v", v)):
            self._require_array(name, rows, (self.layout.num_kv_heads, self.layout.head_dim))
        index, slot = divmod(position, self.layout.block_size)
        (block_id,) = self._writable(block_ids[index : index + 1])
        arena.write_token(block_id, layer, slot, k, v)

    def copy_in(self, block_ids: Iterable[int], pages: NDArray[Any]) -> None:
        """Writes whole blocks of all layers, one copy for each run of consecutive block ids.

        `pages`: [num_layers, len(block_ids), 2 (keys, values), num_kv_heads, block_size, head_dim].
        """
        arena = self._require_open()
        writable = self._writable(block_ids)
        if len(set(writable)) < len(writable):
            twice = next(block_id for block_id in writable if writable.count(block_id) > 1)
            raise ValueError(f"block_ids: block {twice} stands there more than once")
        self._require_array("pages", pages, arena.page_shape(len(writable)))
        arena.write_blocks(writable, pages)

    def copy_out(self, block_ids: Iterable[int]) -> NDArray[Any]:
        """New pages as `copy_in` takes them, one copy for each run of consecutive block ids."""
        arena = self._require_open()
        held = _as_ints(block_ids)
        self._allocator.require_held(held)
        return arena.read_blocks(held)

    def trim(self) -> int:
        """Gives the memory of free blocks that are not cached back; returns how many bytes.

        Whole pages only, and whole huge pages where there are any.
        """
        self._require_open()
        before, block_bytes = self.resident_bytes, self.layout.block_bytes
        unused = self._allocator.unused_blocks()
        for start, stop in consecutive_runs(unused):
            first, last = unused[start], unused[stop - 1]
            self._memory.give_back(first * block_bytes, (last + 1) * block_bytes)
        return before - self.resident_bytes

    def give_back(self, first: int, stop: int) -> None:
        """Gives the memory of blocks `first` to `stop` - 1 back, whole pages of it: their contents
        are zeros. For whoever keeps books of its own and knows that nobody uses them."""
        self._require_open()
        block_bytes = self.layout.block_bytes
        self._memory.give_back(first * block_bytes, stop * block_bytes)

    def discard_in_pieces(self) -> Iterator[None]:
        """Gives all memory back, in every process that maps it: whatever was stored is zeros.

        For a pool that is about to be closed while another process still has it mapped. Some MiB
        each time, so that others have their turns in between.
        """
        self._require_open()
        memory = self._memory
        page_bytes = memory.huge_page_bytes or 1
        piece_bytes = -(-_PIECE_BYTES // page_bytes) * page_bytes
        for start in range(0, memory.num_bytes, piece_bytes):
            if not memory.resident_bytes:
                return
            memory.give_back(start, min(start + piece_bytes, memory.num_bytes))
            yield

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Raises PoolIntegrityError, with both numbers, where the books disagree.

        Given all `tables` of blocks that are held anywhere, they must explain every reference.
        """
        expected = self.num_blocks * self.layout.block_bytes
        require_equal("bytes of memory and of all blocks", self.num_bytes, expected)
        self._allocator.check_integrity(tables)

    def close(self) -> None:
        """Unmaps the memory here and closes `fd`.

        Nothing may run on `address` any more. A HostAttention that was given `memory` must have
        stopped, or its model been removed: it cannot be started, nor start anew after a death,
        without it.
        """
        self._arena = None
        self._memory.close()

    def _require_open(self) -> KvArena:
        if self._arena is None:
            raise ValueError("the pool is closed")
        return self._arena

    def _writable(self, block_ids: Iterable[int]) -> list[int]:
        writable = _as_ints(block_ids)
        self._allocator.require_held(writable)
        for block_id in writable:
            if self._allocator.has_hash(block_id):
                raise ValueError(f"block_ids: block {block_id} is registered, so it is final")
        return writable

    def _require_array(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        dtype = page_dtype(self.layout.element)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(
                f"{name}: {kind}, an array of {dtype} is needed for {self.layout.element.name}"
            )
        if array.shape != shape:
            raise ValueError(f"{name}: shape {list(array.shape)}, {list(shape)} is needed")


def _as_ints(block_ids: Iterable[int]) -> list[int]:
    return [operator.index(block_id) for block_id in block_ids]


def _map_memory(num_bytes: int) -> SharedMemory:
    try:
        return SharedMemory.create("omniserve-kv", num_bytes, huge_pages=True)
    except OSError as error:
        raise OSError(error.errno, f"max_bytes {num_bytes}: {error.strerror}") from error
