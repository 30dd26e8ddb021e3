"""The oracle's comparison notices what could be wrong with a kernel, a plan or a caller.

Each fault is done to a case that is right without it. A comparison that did not notice one would
not notice a kernel that does the same.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attention_cases import (
    Case,
    assert_appended,
    assert_right,
    make_case,
    split_shape,
)
from numpy.typing import NDArray

from cpu_attn.element import Element
from cpu_attn.kernel_task import FIRST_PART, FIRST_TOKEN, NUM_PARTS, PART, STOP_TOKEN, TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.work_items import WorkPlan, plan_items

# By name, for the package exports the function of the same name.
MODULE: Any = importlib.import_module("cpu_attn.paged_attention")

PLAIN = KernelVariant(Element.FLOAT32, Element.FLOAT32, 64)
HALF = KernelVariant(Element.BFLOAT16, Element.BFLOAT16, 128)
QUICK = KernelVariant(Element.BFLOAT16, Element.BFLOAT16, 128, Products.BFLOAT16)
INT8 = KernelVariant(Element.INT8, Element.FLOAT32, 128)


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
    for variant in (PLAIN, HALF, QUICK):
        case = make_case(variant, split_shape(**changed))
        assert_right(case, *run_with_fault(case, control))
        block_tables = case.block_tables.copy()
        results = run_with_fault(case, fault)
        case.block_tables[:] = block_tables
        with pytest.raises(AssertionError, match="sequence, token, head"):
            assert_right(case, *results)


def test_oracle_notices_scales_of_keys_taken_for_values() -> None:
    case = make_case(INT8, split_shape())
    assert_right(case, *run_with_fault(case, control))
    with pytest.raises(AssertionError, match="sequence, token, head"):
        assert_right(case, *run_with_fault(case, swap_scales))


def test_oracle_notices_a_log_sum_exp_of_another_base() -> None:
    case = make_case(PLAIN, split_shape())
    out, lse = case.run()
    assert_right(case, out, lse)
    with pytest.raises(AssertionError):
        assert_right(case, out, lse / np.float32(np.log(2)))


def test_oracle_notices_a_scale_that_is_off_by_a_thousandth() -> None:
    case = make_case(PLAIN, split_shape())
    with pytest.raises(AssertionError, match="sequence, token, head"):
        assert_right(case, *case.run(scale=1.001 * 64**-0.5))


def test_append_check_notices_a_token_in_the_wrong_slot_and_one_too_many() -> None:
    before = make_case(HALF, split_shape(q_len=2, appends=True))
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
    """Two sequences write their partial results over each other's before they are merged."""
    items[:] = items[np.argsort(items[:, PART], kind="stable")]
    items[items[:, FIRST_PART] >= 0, FIRST_PART] = 0


@pytest.mark.parametrize(
    "fault", [unmerged, part_cut_short, part_from_a_tile_too_early, parts_of_another_sequence]
)
def test_oracle_notices_a_plan_with(
    fault: Callable[[NDArray[np.int32]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(PLAIN, split_shape())
    plan = plan_items(case.context_lens, num_kv_heads=2, num_threads=2)
    assert plan.num_parts == 4
    items = plan.items.copy()
    fault(items)
    broken = WorkPlan(items, plan.num_parts, plan.parts_per_group)
    if fault is unmerged:
        broken = WorkPlan(items, 0, np.zeros(0, dtype=np.int32))
    monkeypatch.setattr(MODULE, "plan_items", lambda *_, **__: broken)
    with pytest.raises(AssertionError, match="sequence, token, head"):
        assert_right(case, *case.run())


def test_a_part_that_nobody_does_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(PLAIN, split_shape())
    plan = plan_items(case.context_lens, num_kv_heads=2, num_threads=2)
    broken = WorkPlan(plan.items[1:].copy(), plan.num_parts, plan.parts_per_group)
    monkeypatch.setattr(MODULE, "plan_items", lambda *_, **__: broken)
    # What counts as a result is taken from the items, so the whole plan's number is missed.
    assert broken.num_results == plan.num_results
    with pytest.raises(RuntimeError, match=f"{plan.num_results - 1} of {plan.num_results}"):
        case.run()
