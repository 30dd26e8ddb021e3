"""Random arguments of `paged_attention`, and what must hold of its results."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from naive_paged_attention import DTYPES, attend, cache_values, decode, encode, quantise, sees
from numpy.typing import NDArray

from cpu_attn.element import Element
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.paged_attention import paged_attention

Array = NDArray[Any]

# What rounding an exact result to the output's type costs; float32's is part of the error.
ROUNDING = {Element.FLOAT32: 0.0, Element.FLOAT16: 2.0**-11, Element.BFLOAT16: 2.0**-8}
SMALLEST_STEP = {Element.FLOAT32: 0.0, Element.FLOAT16: 2.0**-25, Element.BFLOAT16: 0.0}
EXACT_ERROR = 2e-6
BFLOAT16_PRODUCTS_ERROR = 4e-3
"""Weights are rounded by up to 2e-3 each, and values of few tokens may partly cancel."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a case, beside what its kernel is compiled for."""

    context_lens: tuple[int, ...]
    num_kv_heads: int = 2
    group_size: int = 2
    q_len: int = 1
    block_size: int = 16
    window: int | None = None
    sink_tokens: int = 0
    has_sinks: bool = False
    appends: bool = False
    spread: float = 1.0
    """Standard deviation of logits."""
    is_strided: bool = False
    """Queries are columns of a wider array, the cache is one of several layers."""
    forgets_unseen: bool = False
    """Positions that no query token sees hold NaN, as slots without a token always do."""
    num_spare_blocks: int = 3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Slots without a token hold NaN, unused table entries point nowhere."""

    variant: KernelVariant
    shape: Shape
    q: Array
    kv_cache: Array
    kv_scales: NDArray[np.float32] | None
    block_tables: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    new_k: Array | None
    new_v: Array | None
    sinks: NDArray[np.float32] | None

    def copy(self) -> "Case":
        """With a cache of its own."""
        scales = None if self.kv_scales is None else self.kv_scales.copy()
        return replace(self, kv_cache=self.kv_cache.copy(), kv_scales=scales)

    def arguments(self) -> dict[str, Any]:
        return {
            "q": self.q,
            "kv_cache": self.kv_cache,
            "block_tables": self.block_tables,
            "context_lens": self.context_lens,
            "new_k": self.new_k,
            "new_v": self.new_v,
            "kv_scales": self.kv_scales,
            "window": self.shape.window,
            "sink_tokens": self.shape.sink_tokens,
            "sinks": self.sinks,
            "products": self.variant.products,
        }

    def run(self, **changed: Any) -> tuple[Array, NDArray[np.float32]]:
        return paged_attention(**(self.arguments() | changed))


def split_shape(**changed: Any) -> Shape:
    """Contexts that two threads cut into parts, and one that they do not."""
    given: dict[str, Any] = {"context_lens": (1500, 1100, 33), "block_size": 64} | changed
    return Shape(**given)


def make_case(variant: KernelVariant, shape: Shape) -> Case:
    rng = np.random.default_rng(shape.seed)
    num_sequences, q_len = len(shape.context_lens), shape.q_len
    num_heads, dim = shape.num_kv_heads * shape.group_size, variant.head_dim
    needed = [-(-length // shape.block_size) for length in shape.context_lens]
    num_blocks = sum(needed) + shape.num_spare_blocks
    ids = iter(rng.permutation(num_blocks))
    tables = np.full((num_sequences, max(needed) + 1), -7, dtype=np.int32)
    for row, count in zip(tables, needed, strict=True):
        row[:count] = [next(ids) for _ in range(count)]

    page = (2, shape.num_kv_heads, shape.block_size, dim)
    layers = np.zeros((num_blocks, 3, *page), dtype=DTYPES[variant.kv])
    cache = layers[:, 1] if shape.is_strided else layers[:, 1].copy()
    scales = None
    if variant.kv is Element.INT8:
        cache[:] = rng.integers(-128, 128, cache.shape)
        scales = np.full(cache.shape[:-1], np.nan, dtype=np.float32)
    else:
        cache[:] = encode(np.full(1, np.nan), variant.kv)

    for s, length in enumerate(shape.context_lens):
        queries = range(length - q_len, length)
        for p in range(length - (q_len if shape.appends else 0)):
            seen = any(sees(query, p, shape.window, shape.sink_tokens) for query in queries)
            if shape.forgets_unseen and not seen:
                continue
            token = rng.normal(size=(2, shape.num_kv_heads, dim))
            place = (tables[s, p // shape.block_size], slice(None), slice(None))
            slot = (*place, p % shape.block_size)
            if scales is None:
                cache[slot] = encode(token, variant.kv)
            else:
                cache[slot], scales[slot] = quantise(token)

    width = num_heads + 2 * shape.num_kv_heads if shape.is_strided else num_heads
    rows = encode(rng.normal(size=(num_sequences, q_len, width, dim)) * shape.spread, variant.io)
    new = encode(rng.normal(size=(2, num_sequences, q_len, shape.num_kv_heads, dim)), variant.io)
    return Case(
        variant=variant,
        shape=shape,
        q=rows[:, :, :num_heads],
        kv_cache=cache,
        kv_scales=scales,
        block_tables=tables,
        context_lens=np.array(shape.context_lens, dtype=np.int32),
        new_k=new[0] if shape.appends else None,
        new_v=new[1] if shape.appends else None,
        sinks=rng.normal(size=num_heads).astype(np.float32) if shape.has_sinks else None,
    )


def assert_right(case: Case, out: Array, lse: NDArray[np.float32]) -> None:
    """Holds results against float64 over the cache as it is now."""
    shape, variant = case.shape, case.variant
    expected, expected_lse = attend(
        decode(case.q, variant.io),
        cache_values(case.kv_cache, variant.kv, case.kv_scales),
        case.block_tables,
        case.context_lens,
        scale=variant.head_dim**-0.5,
        window=shape.window,
        sink_tokens=shape.sink_tokens,
        sinks=case.sinks,
    )
    # A logit's error grows with the logit, and is one in proportion of its weight.
    error = EXACT_ERROR * max(1.0, shape.spread / 2)
    if variant.products is Products.BFLOAT16:
        error += BFLOAT16_PRODUCTS_ERROR
    actual = decode(out, variant.io)
    # The part of each difference that rounding the exact result cannot explain.
    rounding = np.abs(expected) * ROUNDING[variant.io] + SMALLEST_STEP[variant.io]
    unexplained = np.maximum(np.abs(actual - expected) - rounding, 0.0)
    distance = np.where(np.isnan(actual), np.inf, unexplained)
    distance = np.linalg.norm(distance, axis=-1)
    allowed = error * np.linalg.norm(expected, axis=-1)
    worst = np.unravel_index(np.argmax(distance / allowed), distance.shape)
    assert np.all(distance <= allowed), (
        f"at (sequence, token, head) {worst}: {distance[worst]} > {allowed[worst]}"
    )
    lse_error = np.abs(lse - expected_lse)
    assert np.all(lse_error <= error * np.maximum(1.0, np.abs(expected_lse))), lse_error.max()


def appended_slots(case: Case) -> list[tuple[int, int, int, int]]:
    """(sequence, query token, block, slot) of each token that is put into the cache."""
    slots = []
    for s, length in enumerate(case.shape.context_lens):
        for t in range(case.shape.q_len):
            position = length - case.shape.q_len + t
            block = case.block_tables[s, position // case.shape.block_size]
            slots.append((s, t, int(block), position % case.shape.block_size))
    return slots


def assert_appended(before: Case, after: Case) -> None:
    """New keys and values are where they belong and nothing else has changed."""
    unchanged = np.ones(before.kv_cache.shape[:-1], dtype=bool)
    if before.new_k is not None and before.new_v is not None:
        for s, t, block, slot in appended_slots(before):
            unchanged[block, :, :, slot] = False
            for half, rows in enumerate((before.new_k, before.new_v)):
                token = decode(rows[s, t], before.variant.io)
                stored = after.kv_cache[block, half, :, slot]
                if after.kv_scales is None:
                    np.testing.assert_array_equal(stored, encode(token, before.variant.kv))
                    continue
                scales = after.kv_scales[block, half, :, slot]
                np.testing.assert_allclose(scales, quantise(token)[1], rtol=2e-7)
                distance = np.abs(stored - token / scales[:, None].astype(np.float64))
                assert distance.max() <= 0.5001, "not the nearest int8"
    # As bytes, for NaN is not equal to itself.
    size = before.kv_cache.itemsize * before.variant.head_dim
    old, new = (
        np.ascontiguousarray(c.kv_cache).view(np.uint8).reshape(*unchanged.shape, size)
        for c in (before, after)
    )
    np.testing.assert_array_equal(old[unchanged], new[unchanged])
    if before.kv_scales is not None and after.kv_scales is not None:
        np.testing.assert_array_equal(
            before.kv_scales.view(np.uint32)[unchanged], after.kv_scales.view(np.uint32)[unchanged]
        )
