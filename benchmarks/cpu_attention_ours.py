"""Our kernel on one case: a paged cache full of noise, and a decode step over it."""

from typing import Any

import numpy as np
from cpu_attention_case import AttentionCase, Noise, block_tables, exact_attention, huge_memory
from cpu_attention_case import relative_error as error_of
from numpy.typing import NDArray

from cpu_attn import kernel_task as fields
from cpu_attn.bfloat16 import from_bfloat16, to_bfloat16
from cpu_attn.element import Element
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.kv_layout import KvLayout
from cpu_attn.merge import merge_partials
from cpu_attn.paged_kernel import attention_kernel
from cpu_attn.thread_team import ThreadTeam
from cpu_attn.work_items import plan_items

# A step of int8 keys and values: noise is a few of them long.
_INT8_STEPS = 32.0
_PARTS_FOR_ERROR = 2


class PagedCache:
    """Keys and values of a case, laid out as kernels read them."""

    def __init__(self, case: AttentionCase, *, in_memfd: bool) -> None:
        self._case = case
        self.element = Element[case.kv.upper()]
        self.layout = KvLayout(self.element, 1, case.num_kv_heads, case.head_dim, case.block_size)
        self.tables = block_tables(case)
        memory = huge_memory(self.layout.block_bytes * case.num_blocks, in_memfd=in_memfd)
        self.memory = memory[: self.layout.block_bytes * case.num_blocks]
        self._fill()

    def _fill(self) -> None:
        case, noise = self._case, Noise(seed=2)
        shape = (2, case.num_kv_heads, case.block_size, case.head_dim)
        random = np.random.default_rng(3)
        for block in range(case.num_blocks):
            pages, scales = self._views(block)
            numbers = noise.take(*shape)
            if self.element is Element.BFLOAT16:
                pages[:] = to_bfloat16(numbers)
            elif self.element is Element.INT8:
                np.clip(np.rint(numbers * _INT8_STEPS), -127, 127, out=pages, casting="unsafe")
                scales[:] = random.uniform(0.7, 1.4, scales.shape) / _INT8_STEPS
            else:
                pages[:] = numbers

    def _views(self, block: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """[2, num_kv_heads, block_size, head_dim] of the cache's type, and the scales if any."""
        layout, case = self.layout, self._case
        first = block * layout.block_bytes
        shape = (2, case.num_kv_heads, case.block_size)
        pages = self.memory[first : first + layout.scales_offset]
        scales = self.memory[first + layout.scales_offset :][: layout.scales_bytes]
        return (
            pages.view(self.element.dtype).reshape(*shape, case.head_dim),
            scales.view(np.float32).reshape(shape if layout.has_scales else (0,)),
        )

    def sequence(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values [context_len, num_kv_heads, head_dim] of one sequence."""
        blocks = []
        for block in self.tables[index]:
            pages, scales = self._views(block)
            if self.element is Element.BFLOAT16:
                numbers = from_bfloat16(pages)
            else:
                numbers = pages.astype(np.float32)
            if self.layout.has_scales:
                numbers *= scales[..., None]
            blocks.append(numbers)
        both = np.concatenate(blocks, axis=2)[:, :, : self._case.context_len]
        keys, values = both.transpose(0, 2, 1, 3)
        return keys, values


class OurAttention:
    """A decode step of a case, with queries and outputs as a model of that cache has them."""

    def __init__(
        self, case: AttentionCase, cache: PagedCache, products: Products, team: ThreadTeam
    ) -> None:
        self._case, self._cache, self._team = case, cache, team
        self._io = Element.BFLOAT16 if cache.element is Element.INT8 else cache.element
        variant = KernelVariant(cache.element, self._io, case.head_dim, products)
        self._address = attention_kernel(variant).address
        shape = (case.num_sequences, case.num_heads, case.head_dim)
        self._q, self._exact_q = _rounded(Noise(seed=4).take(*shape), self._io)
        self._out = np.zeros(shape, dtype=self._q.dtype)
        self._lse = np.empty((case.num_sequences, 1, case.num_heads), dtype=np.float32)
        self._context_lens = np.full(case.num_sequences, case.context_len, dtype=np.int32)
        self._plan = plan_items(
            self._context_lens,
            num_kv_heads=case.num_kv_heads,
            q_len=1,
            num_threads=case.num_threads,
        )
        stride = fields.partial_stride(case.num_heads, 1, case.head_dim)
        num_partials = max(_PARTS_FOR_ERROR, self._plan.num_parts)
        self._partials = np.empty((num_partials, stride // 4), dtype=np.float32)
        self._parts_left = self._plan.parts_per_group.copy()
        self._task = self._new_task(stride)

    def _new_task(self, partial_stride: int) -> NDArray[np.int64]:
        case, cache = self._case, self._cache
        task = fields.new_task(
            num_kv_heads=case.num_kv_heads,
            group_size=case.group_size,
            q_len=1,
            block_size=case.block_size,
            scale=case.scale,
        )
        task[fields.NUM_ITEMS] = self._plan.num_items
        row_stride = case.num_heads * case.head_dim * self._io.num_bytes
        addresses: dict[int, NDArray[Any]] = {
            fields.ITEMS: self._plan.items,
            fields.Q: self._q,
            fields.OUT: self._out,
            fields.LSE: self._lse,
            fields.CACHE: cache.memory,
            fields.TABLES: cache.tables,
            fields.CONTEXT_LENS: self._context_lens,
            fields.PARTIALS: self._partials,
            fields.PARTS_LEFT: self._parts_left,
        }
        for field, array in addresses.items():
            task[field] = array.ctypes.data
        for field in (fields.Q_SEQUENCE_STRIDE, fields.Q_TOKEN_STRIDE):
            task[field] = row_stride
        for field in (fields.OUT_SEQUENCE_STRIDE, fields.OUT_TOKEN_STRIDE):
            task[field] = row_stride
        task[fields.BLOCK_STRIDE] = cache.layout.block_bytes
        task[fields.TABLE_STRIDE] = cache.tables.strides[0]
        task[fields.PARTIAL_STRIDE] = partial_stride
        if cache.layout.has_scales:
            task[fields.SCALES] = cache.memory.ctypes.data + cache.layout.scales_offset
            task[fields.SCALES_STRIDE] = cache.layout.block_bytes
        return task

    def run(self) -> None:
        self._task[fields.NEXT_ITEM] = 0
        self._task[fields.NUM_FINISHED] = 0
        self._team.run(self._address, self._task.ctypes.data, at_most=self._plan.num_items)
        assert self._task[fields.NUM_FINISHED] == self._plan.num_results, "a kernel gave up"

    def error(self) -> float:
        """Against float64, before outputs are rounded to the queries' type."""
        errors = []
        for index in self._case.checked_sequences:
            keys, values = self._cache.sequence(index)
            expected = exact_attention(self._exact_q[index], keys, values, self._case.scale)
            errors.append(error_of(self._unrounded(index), expected))
        return max(errors)

    def _unrounded(self, sequence: int) -> NDArray[np.float32]:
        """float32 [num_heads, head_dim]: the sequence in parts, which are merged here."""
        case, task = self._case, self._task.copy()
        cuts = [0, case.context_len // 2 // fields.TILE_TOKENS * fields.TILE_TOKENS]
        ends = [*cuts[1:], case.context_len]
        items = np.array(
            [
                (sequence, 0, case.num_kv_heads, first, stop, 0, part, _PARTS_FOR_ERROR, 0)
                for part, (first, stop) in enumerate(zip(cuts, ends, strict=True))
            ],
            dtype=np.int32,
        )
        # One part more than there are: no one finishes last, so no one merges.
        parts_left = np.array([_PARTS_FOR_ERROR + 1], dtype=np.int32)
        task[fields.NEXT_ITEM] = 0
        task[fields.NUM_ITEMS] = len(items)
        task[fields.ITEMS] = items.ctypes.data
        task[fields.PARTS_LEFT] = parts_left.ctypes.data
        self._team.run(self._address, task.ctypes.data)
        parts = self._partials[:_PARTS_FOR_ERROR]
        outs, lses = parts[:, : -case.num_heads], parts[:, -case.num_heads :]
        outs = outs.reshape(_PARTS_FOR_ERROR, case.num_heads, case.head_dim)
        return merge_partials(np.ascontiguousarray(outs), np.ascontiguousarray(lses))[0]


def _rounded(
    numbers: NDArray[np.float32], element: Element
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Numbers as they lie in memory, and what they amount to."""
    if element is Element.BFLOAT16:
        bits = to_bfloat16(numbers)
        return bits, from_bfloat16(bits)
    stored = numbers.astype(element.dtype)
    return stored, stored.astype(np.float32)
