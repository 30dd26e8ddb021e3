"""Kernels against attention in float64, over drawn shapes, element types and block tables."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attention_cases import Case, Shape, assert_appended, assert_right, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_paged_attention import decode, encode
from numpy.typing import NDArray

from cpu_attn import merge, work_items
from cpu_attn.element import Element
from cpu_attn.kernel_task import FIRST_PART, FIRST_TOKEN, NUM_PARTS, PART, STOP_TOKEN, TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.work_items import WorkPlan, plan_items

# By name, for the package exports the function of the same name.
MODULE: Any = importlib.import_module("cpu_attn.paged_attention")

FLOAT32, FLOAT16, BFLOAT16, INT8 = Element
VARIANTS = [
    KernelVariant(FLOAT32, FLOAT32, 64),
    KernelVariant(FLOAT16, FLOAT16, 128),
    KernelVariant(BFLOAT16, BFLOAT16, 128),
    KernelVariant(BFLOAT16, FLOAT32, 64),
    KernelVariant(INT8, FLOAT32, 128),
    KernelVariant(BFLOAT16, FLOAT32, 64, Products.BFLOAT16),
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
        np.testing.assert_array_equal(out[:, :, ::2], 0.0)
        np.testing.assert_allclose(lse[:, :, ::2], logit, rtol=1e-6)


def cut_shape(**changed: Any) -> Shape:
    """Contexts that two threads cut into parts, and one that they do not."""
    return Shape(**({"context_lens": (1500, 1100, 33), "block_size": 64} | changed))


def test_results_do_not_depend_on_who_does_what(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(PLAIN, cut_shape())
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
    case = make_case(VARIANTS[4], cut_shape(q_len=3, appends=True))
    out, lse = case.run()
    once = case.copy()
    again, lse_again = case.run()
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(lse_again, lse)
    np.testing.assert_array_equal(case.kv_cache, once.kv_cache)


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


# What is wrong with a kernel, a plan or a caller, each done to a case that is right without it. The
# comparison must notice every one, or it would not notice a kernel that does the same.


def drop_a_block(case: Case) -> Case:
    case.block_tables[0, 3] = case.block_tables[0, 4]
    return case


def swap_keys_and_values(case: Case) -> Case:
    return replace(case, kv_cache=np.ascontiguousarray(case.kv_cache[:, ::-1]))


def swap_scales(case: Case) -> Case:
    assert case.kv_scales is not None
    return replace(case, kv_scales=np.ascontiguousarray(case.kv_scales[:, ::-1]))


def scatter_heads(case: Case) -> Case:
    """Query head h to KV head h % num_kv_heads."""
    return replace(case, q=np.ascontiguousarray(case.q[:, :, [0, 2, 1, 3]]))


def reverse_query_tokens(case: Case) -> Case:
    return replace(case, q=np.ascontiguousarray(case.q[:, ::-1]))


def change_shape(**changed: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, shape=replace(case.shape, **changed))


def shift_lengths(by: int) -> Callable[[Case], Case]:
    return lambda case: replace(case, context_lens=case.context_lens + np.int32(by))


def forget_sinks(case: Case) -> Case:
    return replace(case, sinks=None)


INPUT_FAULTS: dict[str, tuple[Callable[[Case], Case], dict[str, Any]]] = {
    "a dropped block": (drop_a_block, {}),
    "a length short by one": (shift_lengths(-1), {}),
    "keys taken for values": (swap_keys_and_values, {}),
    "query heads spread over KV heads": (scatter_heads, {}),
    "query tokens in reverse": (reverse_query_tokens, {"q_len": 2}),
    "a window longer by one": (change_shape(window=201), {"window": 200}),
    "a window shorter by one": (change_shape(window=199), {"window": 200}),
    "one sink token less": (change_shape(sink_tokens=3), {"window": 200, "sink_tokens": 4}),
    "sinks left out": (forget_sinks, {"has_sinks": True}),
}


def control(case: Case) -> Case:
    return case


def run_with_fault(case: Case, fault: Callable[[Case], Case]) -> tuple[Any, Any]:
    return fault(case.copy()).run(num_threads=2)


@pytest.mark.parametrize("name", INPUT_FAULTS)
def test_oracle_notices(name: str) -> None:
    fault, changed = INPUT_FAULTS[name]
    for variant in (PLAIN, VARIANTS[2], VARIANTS[5]):
        case = make_case(variant, cut_shape(**changed))
        assert_right(case, *run_with_fault(case, control))
        block_tables = case.block_tables.copy()
        results = run_with_fault(case, fault)
        case.block_tables[:] = block_tables
        with pytest.raises(AssertionError, match="sequence, token, head"):
            assert_right(case, *results)


def test_oracle_notices_scales_of_keys_taken_for_values() -> None:
    case = make_case(VARIANTS[4], cut_shape())
    assert_right(case, *run_with_fault(case, control))
    with pytest.raises(AssertionError, match="sequence, token, head"):
        assert_right(case, *run_with_fault(case, swap_scales))


def test_oracle_notices_a_log_sum_exp_of_another_base() -> None:
    case = make_case(PLAIN, cut_shape())
    out, lse = case.run()
    assert_right(case, out, lse)
    with pytest.raises(AssertionError):
        assert_right(case, out, lse / np.float32(np.log(2)))


def test_oracle_notices_a_scale_that_is_off_by_a_thousandth() -> None:
    case = make_case(PLAIN, cut_shape())
    with pytest.raises(AssertionError, match="sequence, token, head"):
        assert_right(case, *case.run(scale=1.001 * 64**-0.5))


def test_append_check_notices_a_token_in_the_wrong_slot_and_one_too_many() -> None:
    before = make_case(VARIANTS[2], cut_shape(q_len=2, appends=True))
    after = before.copy()
    after.run()
    assert_appended(before, after)
    for slot in (0, -1):
        wrong = after.copy()
        wrong.kv_cache[before.block_tables[0, 2], 0, 1, slot, 7] ^= 1
        with pytest.raises(AssertionError):
            assert_appended(before, wrong)
    with pytest.raises(AssertionError):
        assert_appended(before, before)


def unmerged(items: NDArray[np.int32]) -> None:
    """Each part is taken for the whole; the last one to finish stays."""
    items[:, FIRST_PART], items[:, PART], items[:, NUM_PARTS] = -1, 0, 1


def part_cut_short(items: NDArray[np.int32]) -> None:
    items[0, STOP_TOKEN] -= TILE_TOKENS


def part_from_a_tile_too_early(items: NDArray[np.int32]) -> None:
    later = int(np.argmax(items[:, FIRST_TOKEN] > 0))
    items[later, FIRST_TOKEN] -= TILE_TOKENS


def parts_of_another_sequence(items: NDArray[np.int32]) -> None:
    """Two sequences write their partial results over each other's."""
    items[items[:, FIRST_PART] >= 0, FIRST_PART] = 0


@pytest.mark.parametrize(
    "fault", [unmerged, part_cut_short, part_from_a_tile_too_early, parts_of_another_sequence]
)
def test_oracle_notices_a_plan_with(
    fault: Callable[[NDArray[np.int32]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(PLAIN, cut_shape())
    plan = plan_items(case.context_lens, num_kv_heads=2, num_threads=2)
    assert plan.num_parts > 4
    items = plan.items.copy()
    fault(items)
    broken = WorkPlan(items, plan.num_parts, plan.parts_per_group)
    if fault is unmerged:
        broken = WorkPlan(items, 0, np.zeros(0, dtype=np.int32))
    monkeypatch.setattr(MODULE, "plan_items", lambda *_, **__: broken)
    with pytest.raises(AssertionError, match="sequence, token, head"):
        assert_right(case, *case.run())


def test_a_part_that_nobody_does_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(PLAIN, cut_shape())
    plan = plan_items(case.context_lens, num_kv_heads=2, num_threads=2)
    broken = WorkPlan(plan.items[1:].copy(), plan.num_parts, plan.parts_per_group)
    monkeypatch.setattr(MODULE, "plan_items", lambda *_, **__: broken)
    # What counts as a result is taken from the items, so the whole plan's number is missed.
    assert broken.num_results == plan.num_results
    with pytest.raises(RuntimeError, match=f"{plan.num_results - 1} of {plan.num_results}"):
        case.run()


def test_elements_are_rounded_to_the_nearest_even() -> None:
    """The oracle's own bfloat16: a tie goes to the even neighbour, the rest to the nearer one."""
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8])
    assert decode(encode(ties, BFLOAT16), BFLOAT16).tolist() == [1, 1 + 2**-6, 1 + 2**-7, -1]
