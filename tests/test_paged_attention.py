"""Kernels against attention in float64, over drawn shapes, element types and block tables."""

import importlib
from typing import Any

import numpy as np
import pytest
from attention_cases import (
    Array,
    Case,
    Shape,
    assert_appended,
    assert_right,
    make_case,
    split_shape,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_paged_attention import decode, encode

from cpu_attn import merge, work_items
from cpu_attn.element import Element
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.work_items import plan_items

# By name, for the package exports the function of the same name.
MODULE: Any = importlib.import_module("cpu_attn.paged_attention")

FLOAT32, FLOAT16, BFLOAT16, INT8 = (
    Element[name] for name in ("FLOAT32", "FLOAT16", "BFLOAT16", "INT8")
)
VARIANTS = [
    KernelVariant(FLOAT32, FLOAT32, 64),
    KernelVariant(FLOAT16, FLOAT16, 128),
    KernelVariant(BFLOAT16, BFLOAT16, 128),
    KernelVariant(BFLOAT16, FLOAT32, 64),
    KernelVariant(INT8, FLOAT32, 128),
    KernelVariant(BFLOAT16, BFLOAT16, 64, Products.BFLOAT16),
    KernelVariant(FLOAT32, FLOAT32, 16),
    KernelVariant(FLOAT16, FLOAT32, 80),
    KernelVariant(BFLOAT16, FLOAT16, 48),
    KernelVariant(INT8, BFLOAT16, 64),
    KernelVariant(BFLOAT16, BFLOAT16, 256),
    KernelVariant(BFLOAT16, BFLOAT16, 128, Products.BFLOAT16),
]
PLAIN = VARIANTS[0]


def variant_name(variant: KernelVariant) -> str:
    products = "-bf16products" if variant.products is Products.BFLOAT16 else ""
    return f"{variant.kv.name}-{variant.io.name}-{variant.head_dim}{products}".lower()


each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    q_len = draw(st.sampled_from([1, 1, 1, 2, 3, 5, 8]))
    near_tiles = st.sampled_from([63, 64, 65, 127, 128, 129, 255, 256, 257])
    length = st.one_of(st.integers(q_len, 40), near_tiles, st.integers(q_len, 600))
    num_kv_heads = draw(st.sampled_from([1, 2, 3, 8]))
    return Shape(
        context_lens=tuple(draw(st.lists(length, min_size=1, max_size=4))),
        num_kv_heads=num_kv_heads,
        group_size=draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16] if num_kv_heads < 8 else [1, 4])),
        q_len=q_len,
        block_size=draw(st.sampled_from([16, 32, 48, 64, 128, 256])),
        window=draw(st.none() | st.integers(1, 300)),
        sink_tokens=draw(st.sampled_from([0, 1, 4, 64, 70])),
        has_sinks=draw(st.booleans()),
        appends=draw(st.booleans()),
        spread=draw(st.sampled_from([0.0, 1.0, 1.0, 8.0])),
        is_strided=draw(st.booleans()),
        forgets_unseen=draw(st.booleans()),
        num_spare_blocks=draw(st.integers(0, 5)),
        seed=draw(st.integers(0, 2**32)),
    )


@each_variant
@settings(max_examples=30, deadline=None)
@given(shape=shapes(), num_threads=st.integers(1, 3), cuts_short=st.booleans())
def test_oracle(variant: KernelVariant, shape: Shape, num_threads: int, cuts_short: bool) -> None:
    case = make_case(variant, shape)
    before = case.copy()
    with pytest.MonkeyPatch.context() as patch:
        if cuts_short:
            # Many parts without contexts that the oracle would take seconds for.
            patch.setattr(work_items, "MIN_PART_TOKENS", TILE_TOKENS)
        out, lse = case.run(num_threads=num_threads)
    assert_appended(before, case)
    assert_right(case, out, lse)


@pytest.mark.parametrize("variant", VARIANTS[:6], ids=variant_name)
def test_oracle_of_long_contexts_in_parts(variant: KernelVariant) -> None:
    shape = Shape(context_lens=(2500, 40, 1111), group_size=3, block_size=32, appends=True, q_len=2)
    case = make_case(variant, shape)
    assert_right(case, *case.run(num_threads=2))


@pytest.mark.parametrize("variant", VARIANTS[:6], ids=variant_name)
def test_oracle_of_large_logits(variant: KernelVariant) -> None:
    """Softmax of logits up to a thousand: one key takes all, nothing overflows."""
    case = make_case(variant, Shape(context_lens=(300, 90), spread=300.0, has_sinks=True))
    assert_right(case, *case.run())


@pytest.mark.parametrize("logit", [-np.inf, -1e30, -80.0, 0.0, 80.0, 1e4])
def test_sinks_from_nothing_to_everything(logit: float) -> None:
    case = make_case(PLAIN, Shape(context_lens=(130, 1, 700), has_sinks=True))
    assert case.sinks is not None
    case.sinks[::2] = logit
    out, lse = case.run(num_threads=2)
    if logit < 1e4:
        assert_right(case, out, lse)
    else:
        np.testing.assert_allclose(out[:, :, ::2], 0.0, atol=1e-30)
        np.testing.assert_allclose(lse[:, :, ::2], logit, rtol=1e-6)


@pytest.mark.parametrize("many", [2**31, 2**32, 2**40, 2**70])
def test_counts_of_tokens_beyond_every_context(many: int) -> None:
    lengths = (200, 700)
    for shape in (
        Shape(context_lens=lengths, window=many),
        Shape(context_lens=lengths, window=20, sink_tokens=many),
    ):
        case = make_case(PLAIN, shape)
        assert_right(case, *case.run(num_threads=2))


def test_results_do_not_depend_on_who_does_what(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(PLAIN, split_shape())
    plan = plan_items(case.context_lens, num_kv_heads=2, num_threads=4)
    assert plan.num_parts > 2
    monkeypatch.setattr(MODULE, "plan_items", lambda *_, **__: plan)
    out, lse = case.run()
    for repeat in range(60):
        again, lse_again = case.run(num_threads=1 + repeat % 4)
        np.testing.assert_array_equal(again, out)
        np.testing.assert_array_equal(lse_again, lse)


def test_tokens_may_be_appended_again() -> None:
    """As by a task that is done twice."""
    case = make_case(VARIANTS[4], split_shape(q_len=3, appends=True))
    out, lse = case.run()
    once = case.copy()
    again, lse_again = case.run()
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(lse_again, lse)
    np.testing.assert_array_equal(case.kv_cache, once.kv_cache)


@pytest.mark.parametrize("variant", VARIANTS[:6], ids=variant_name)
@pytest.mark.parametrize("sink_tokens", [3, 4, 20, 64, 70])
def test_what_lies_between_sinks_and_window_may_be_anything(
    variant: KernelVariant, sink_tokens: int
) -> None:
    """Also in the same run of 64 tokens, and in the same 16."""
    for window in (10, 20, 30, 60, 90, 130):
        shape = Shape(
            context_lens=(39, 100, 150),
            q_len=2,
            window=window,
            sink_tokens=sink_tokens,
            forgets_unseen=True,
        )
        case = make_case(variant, shape)
        assert_right(case, *case.run())


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_nan_stays_in_its_rows(num_threads: int) -> None:
    """In parts too, where a log-sum-exp of -inf would say that there was nothing."""
    case = make_case(PLAIN, split_shape())
    case.q[0, 0, 1, 5] = np.nan
    out, lse = case.run(num_threads=num_threads)
    assert np.isnan(out[0, 0]).all(axis=-1).tolist() == [False, True, False, False]
    assert np.isnan(lse[0, 0]).tolist() == [False, True, False, False]
    assert not np.isnan(lse[1:]).any()


def test_a_nan_stays_in_its_sequence() -> None:
    case = make_case(PLAIN, Shape(context_lens=(70, 70, 70), num_kv_heads=1))
    case.q[1, 0, 0, 5] = np.nan
    out, lse = case.run()
    assert np.isnan(out[1, 0, 0]).all() and np.isnan(lse[1, 0, 0])
    case.q[1, 0, 0, 5] = 0.0
    clean, _ = case.run()
    np.testing.assert_array_equal(out[[0, 2]], clean[[0, 2]])
    np.testing.assert_array_equal(out[1, 0, 1], clean[1, 0, 1])


def test_results_over_two_halves_of_the_keys_merge_to_the_whole() -> None:
    """A sequence with some blocks here and some there: the first 128 tokens are another's job."""
    shape = Shape(context_lens=(300,), block_size=64)
    case = make_case(PLAIN, shape)
    halves = [
        case.run(context_lens=np.array([128], dtype=np.int32)),
        case.run(
            block_tables=np.ascontiguousarray(case.block_tables[:, 2:]),
            context_lens=np.array([172], dtype=np.int32),
        ),
    ]
    outs, lses = (np.stack(results) for results in zip(*halves, strict=True))
    assert_right(case, *merge.merge_partials(outs, lses))


CUT = 128


def earlier_part(case: Case) -> tuple[Array, Array]:
    """Of the tokens before CUT, as `merge_partials` says that it is to be asked for."""
    out, lse = np.zeros_like(case.q), np.full(case.q.shape[:3], -np.inf, dtype=np.float32)
    first = int(case.context_lens[0]) - case.shape.q_len
    given = {"new_k": None, "new_v": None, "sinks": None}
    for token in range(case.shape.q_len):
        length, window = CUT, case.shape.window
        if window is not None:
            window -= first + token - (CUT - 1)
            if window < 1:
                length, window = case.shape.sink_tokens, None
        if length:
            out[:, token], lse[:, token] = (
                result[:, 0]
                for result in case.run(
                    **given,
                    q=case.q[:, token : token + 1],
                    context_lens=np.full_like(case.context_lens, length),
                    window=window,
                )
            )
    return out, lse


@pytest.mark.parametrize("window", [None, 300, 173, 100])
@pytest.mark.parametrize("sink_tokens", [0, 5])
def test_parts_with_several_query_tokens(window: int | None, sink_tokens: int) -> None:
    """With 173, the window of the last query token alone does not reach the earlier part."""
    case = make_case(
        PLAIN,
        Shape(
            context_lens=(302,),
            q_len=3,
            window=window,
            sink_tokens=sink_tokens,
            has_sinks=True,
            appends=True,
        ),
    )
    later = case.run(
        block_tables=np.ascontiguousarray(case.block_tables[:, CUT // 16 :]),
        context_lens=case.context_lens - np.int32(CUT),
        sink_tokens=0,
    )
    parts = zip(earlier_part(case), later, strict=True)
    out, lse = merge.merge_partials(*(np.stack(results) for results in parts))
    assert_right(case, out, lse)


def test_an_earlier_part_at_once() -> None:
    """Without a window all query tokens, each a sequence of its own, are one call."""
    case = make_case(PLAIN, Shape(context_lens=(200, 190), q_len=3))
    num_sequences, q_len, *heads = case.q.shape
    expected = earlier_part(case)
    out, lse = case.run(
        q=np.ascontiguousarray(case.q).reshape(num_sequences * q_len, 1, *heads),
        block_tables=np.repeat(case.block_tables, q_len, axis=0),
        context_lens=np.full(num_sequences * q_len, CUT, dtype=np.int32),
    )
    np.testing.assert_array_equal(out.reshape(case.q.shape), expected[0])
    np.testing.assert_array_equal(lse.reshape(case.q.shape[:3]), expected[1])


def test_out_may_be_given_and_int16_said_to_be_bfloat16() -> None:
    case = make_case(VARIANTS[3], Shape(context_lens=(90,)))
    wide = np.full((1, 1, 6, 64), 9.0, dtype=np.float32)
    out, lse = case.run(
        out=wide[:, :, 1:5], kv_cache=case.kv_cache.view(np.int16), kv_element=BFLOAT16
    )
    assert np.shares_memory(out, wide)
    assert_right(case, out, lse)
    assert (wide[:, :, [0, 5]] == 9.0).all()


def test_an_empty_batch() -> None:
    case = make_case(PLAIN, Shape(context_lens=(5,)))
    out, lse = case.run(
        q=case.q[:0], block_tables=case.block_tables[:0], context_lens=case.context_lens[:0]
    )
    assert out.shape == (0, 1, 4, 64) and lse.shape == (0, 1, 4)


def test_elements_are_rounded_to_the_nearest_even() -> None:
    """The oracle's own bfloat16: a tie goes to the even neighbour, the rest to the nearer one."""
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8])
    assert decode(encode(ties, BFLOAT16), BFLOAT16).tolist() == [1, 1 + 2**-6, 1 + 2**-7, -1]


def test_equal_values_over_a_long_context_are_given_back() -> None:
    """Each addition of the same number rounds the same way: only short sums stay exact."""
    length = 20_000
    q = np.random.default_rng(5).standard_normal((1, 1, 4, 64), np.float32)
    cache = np.full((-(-length // 16), 2, 1, 16, 64), np.float32(0.7))
    tables = np.arange(len(cache), dtype=np.int32)[None]
    out, _ = MODULE.paged_attention(q, cache, tables, np.array([length], np.int32))
    np.testing.assert_allclose(out, np.float32(0.7), rtol=2e-6)
