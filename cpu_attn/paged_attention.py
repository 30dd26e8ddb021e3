"""Attention of a few query tokens a sequence over paged keys and values, every argument checked."""

import os
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cpu_attn import kernel_task
from cpu_attn.attention_inputs import (
    Array,
    AttentionInputs,
    element_of,
    softmax_scale,
    token_count,
    whole_number,
)
from cpu_attn.element import QUERY_ELEMENTS, Element
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.kv_layout import KvLayout
from cpu_attn.paged_kernel import attention_kernel
from cpu_attn.thread_team import ThreadTeam
from cpu_attn.work_items import WorkPlan, plan_items


def paged_attention(
    q: Array,
    kv_cache: Array,
    block_tables: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    *,
    new_k: Array | None = None,
    new_v: Array | None = None,
    kv_element: Element | None = None,
    io_element: Element | None = None,
    kv_scales: NDArray[np.float32] | None = None,
    scale: float | None = None,
    window: int | None = None,
    sink_tokens: int = 0,
    sinks: NDArray[np.float32] | None = None,
    products: Products = Products.EXACT,
    num_threads: int = 1,
    out: Array | None = None,
) -> tuple[Array, NDArray[np.float32]]:
    """Causal attention of the last q_len tokens of each sequence over its whole context.

    q: [num_sequences, q_len 1..8, num_heads, head_dim] float32, float16 or uint16 (bfloat16);
    the last two dimensions are contiguous, as in new_k, new_v and out. 1 to 16 query heads share
    a KV head, neighbours the same one; head_dim is a multiple of 16 up to 256.
    kv_cache: [num_blocks, 2 (keys, values), num_kv_heads, block_size, head_dim]
    float32, float16, uint16 (bfloat16) or int8, whatever q has; all but the first dimension
    contiguous; block_size is a multiple of 16 up to 256. Slots that hold no token are never part
    of a result. int16 is taken for bfloat16 where `kv_element` or `io_element` (of q) says so.
    kv_scales: float32 [num_blocks, 2, num_kv_heads, block_size], with an int8 cache only: a key or
    value is its int8 times its scale.
    block_tables: int32 [num_sequences, max_blocks]; token p of a sequence is in slot
    p % block_size of block block_tables[sequence, p // block_size]. Tokens are
    read in runs of 64 (0 to 63, 64 to 127, ...). Where no query token sees any token of a run, its
    table entries are not looked at: before a window, say, or behind the context.
    context_lens: int32 [num_sequences], the query tokens included.
    new_k, new_v: [num_sequences, q_len, num_kv_heads, head_dim] as q: keys and values of the query
    tokens, which are put into the cache first; without them they are there already.
    scale: 1 / sqrt(head_dim) if None. window: a token sees that many positions up to its own, and
    the first `sink_tokens`. sinks: float32 [num_heads], a logit a head that takes part in the
    softmax without a value. products: see Products. out: [like q], else a new array.

    Returns out and the natural logarithm of the sum of exponentials, float32
    [num_sequences, q_len, num_heads]; `merge_partials` makes one of results over disjoint keys and
    says how each is to be asked for. bfloat16 results are uint16 too: see `from_bfloat16`.
    Raises TypeError for wrong dtypes and ValueError for all other arguments that it cannot work
    with. Its first use of a kind of kernel compiles it.
    """
    io = element_of("q", q, "io_element", io_element, QUERY_ELEMENTS)
    layout = _layout(kv_cache, element_of("kv_cache", kv_cache, "kv_element", kv_element))
    if q.ndim != 4:
        raise ValueError(f"q {q.shape}: [num_sequences, q_len, num_heads, head_dim] is needed")
    num_threads = whole_number("num_threads", num_threads, at_least=1)
    inputs = AttentionInputs(
        q=q,
        kv_cache=kv_cache,
        block_tables=block_tables,
        context_lens=context_lens,
        new_k=new_k,
        new_v=new_v,
        kv_scales=kv_scales,
        sinks=sinks,
        out=np.empty(q.shape, dtype=q.dtype) if out is None else out,
        layout=layout,
        io=io,
        scale=softmax_scale(scale, layout.head_dim),
        window=None if window is None else token_count("window", window, at_least=1),
        sink_tokens=token_count("sink_tokens", sink_tokens, at_least=0),
    )
    inputs.check()
    variant = KernelVariant(layout.element, io, layout.head_dim, Products(products))
    plan = plan_items(
        context_lens,
        num_kv_heads=layout.num_kv_heads,
        q_len=q.shape[1],
        window=inputs.window,
        sink_tokens=inputs.sink_tokens,
        num_threads=num_threads,
    )
    return inputs.out, _run(inputs, variant, plan, _team(num_threads))


def _run(
    inputs: AttentionInputs, variant: KernelVariant, plan: WorkPlan, team: ThreadTeam
) -> NDArray[np.float32]:
    """Writes inputs.out and returns the log-sum-exp."""
    lse = np.empty(inputs.q.shape[:3], dtype=np.float32)
    num_sequences, q_len, num_heads, head_dim = inputs.q.shape
    if not num_sequences:
        return lse
    stride = kernel_task.partial_stride(num_heads, q_len, head_dim)
    partials = np.empty(plan.num_parts * stride // 4, dtype=np.float32)
    parts_left = plan.parts_per_group.copy()
    task = _new_task(inputs)
    task[kernel_task.LSE] = lse.ctypes.data
    task[kernel_task.NUM_ITEMS] = plan.num_items
    task[kernel_task.ITEMS] = plan.items.ctypes.data
    task[kernel_task.PARTIALS] = partials.ctypes.data
    task[kernel_task.PARTIAL_STRIDE] = stride
    task[kernel_task.PARTS_LEFT] = parts_left.ctypes.data
    kernel = attention_kernel(variant)
    team.run(kernel.address, task.ctypes.data, at_most=plan.num_items)
    finished = int(task[kernel_task.NUM_FINISHED])
    if finished != plan.num_results:
        # What is raised inside a callback cannot reach its caller; lack of memory is one case.
        raise RuntimeError(f"{finished} of {plan.num_results} results: a kernel gave up")
    return lse


def _new_task(inputs: AttentionInputs) -> NDArray[np.int64]:
    """All fields but those of the work."""
    layout = inputs.layout
    task = kernel_task.new_task(
        num_kv_heads=layout.num_kv_heads,
        group_size=inputs.group_size,
        q_len=inputs.q.shape[1],
        block_size=layout.block_size,
        scale=inputs.scale,
    )
    _set_rows(task, kernel_task.Q, inputs.q)
    _set_rows(task, kernel_task.OUT, inputs.out)
    if inputs.new_k is not None and inputs.new_v is not None:
        _set_rows(task, kernel_task.K, inputs.new_k)
        _set_rows(task, kernel_task.V, inputs.new_v)
    task[kernel_task.CACHE] = inputs.kv_cache.ctypes.data
    task[kernel_task.BLOCK_STRIDE] = inputs.kv_cache.strides[0]
    task[kernel_task.TABLES] = inputs.block_tables.ctypes.data
    task[kernel_task.TABLE_STRIDE] = inputs.block_tables.strides[0]
    task[kernel_task.CONTEXT_LENS] = inputs.context_lens.ctypes.data
    if inputs.kv_scales is not None:
        task[kernel_task.SCALES] = inputs.kv_scales.ctypes.data
        task[kernel_task.SCALES_STRIDE] = inputs.kv_scales.strides[0]
    if inputs.window is not None:
        task[kernel_task.WINDOW] = inputs.window
        task[kernel_task.SINK_TOKENS] = inputs.sink_tokens
    if inputs.sinks is not None:
        task[kernel_task.SINKS] = inputs.sinks.ctypes.data
    return task


def _set_rows(task: NDArray[np.int64], field: int, rows: Array) -> None:
    """Address, then strides of sequences and of tokens."""
    task[field] = rows.ctypes.data
    task[field + 1], task[field + 2] = rows.strides[:2]


def _layout(kv_cache: Array, element: Element) -> KvLayout:
    if kv_cache.ndim != 5 or kv_cache.shape[1] != 2:
        raise ValueError(
            f"kv_cache {kv_cache.shape}: [num_blocks, 2, num_kv_heads, block_size, head_dim] "
            "is needed"
        )
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    return KvLayout(element, 1, num_kv_heads, head_dim, block_size)


@cache
def _team(num_threads: int) -> ThreadTeam:
    """Kept: starting threads takes longer than attending to a short context."""
    return ThreadTeam(num_threads)


# A forked child has this process's teams without their threads.
os.register_at_fork(after_in_child=_team.cache_clear)
