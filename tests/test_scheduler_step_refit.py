"""Refit: a model of step times that follows what steps really take."""

import random
from dataclasses import replace
from statistics import fmean

import pytest

from scheduler.step_refit import StepRefit
from scheduler.step_time import StepCosts, StepShape

FITTED = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 5e-3), (64, 40e-3), (256, 200e-3)),
    decode_context_token_s=1e-6,
    prefill_pair_s=3e-8,
    prefill_step_s=5e-4,
    prefill_chunk_s=2e-4,
    lane_row_s=1e-4,
    sampled_row_s=6e-5,
    cold_step_s=4e-4,
)


def shapes(number: int) -> list[StepShape]:
    """Decodes alone, prompts, and both with lane rows."""
    draw = random.Random(2)
    made = []
    for place in range(number):
        decodes = draw.randint(1, 32)
        tokens = draw.randint(16, 128) if place % 3 else 0
        made.append(
            StepShape(
                decodes,
                decodes * draw.randint(50, 2000),
                tokens,
                tokens * draw.randint(50, 1000),
                tokens,
                draw.choice((0.0, 8.0)),
                decodes,
                draw.randint(1, 4) if tokens else 0,
                draw.random(),
            )
        )
    return made


def errors(costs: StepCosts, truth: StepCosts) -> list[float]:
    return [abs(costs.step_s(each) / truth.step_s(each) - 1.0) for each in shapes(200)]


def test_what_was_fitted_holds_until_steps_say_otherwise() -> None:
    refit = StepRefit(FITTED)
    for shape in shapes(50):
        refit.observe(shape, FITTED.step_s(shape))
    assert refit.costs is FITTED
    assert refit.costs_now is FITTED


@pytest.mark.parametrize(
    "truth",
    [
        replace(FITTED, dense_ladder=tuple((rows, 1.4 * s) for rows, s in FITTED.dense_ladder)),
        replace(FITTED, overhead_s=4e-3),
        replace(FITTED, decode_context_token_s=3e-6),
        FITTED.times(1.3),
    ],
)
def test_it_comes_to_the_truth_in_some_hundred_steps(truth: StepCosts) -> None:
    refit = StepRefit(FITTED)
    before = fmean(errors(FITTED, truth))
    for shape in shapes(2000):
        refit.observe(shape, truth.step_s(shape))
    assert fmean(errors(refit.costs, truth)) < before / 2


def test_a_machine_that_is_slower_for_a_while_is_followed_at_once() -> None:
    refit, slower = StepRefit(FITTED), FITTED.times(1.25)
    for shape in shapes(20):
        refit.observe(shape, slower.step_s(shape))
    assert fmean(errors(refit.costs_now, slower)) < 0.03
    # What is to come later is not reckoned with its pace of now.
    assert fmean(errors(refit.costs, slower)) > 0.05
    for shape in shapes(20):
        refit.observe(shape, FITTED.step_s(shape))
    assert fmean(errors(refit.costs_now, FITTED)) < 0.03


def test_prompts_have_a_pace_of_their_own() -> None:
    """Decodes that wait for memory say little of prompts, which compute."""
    refit = StepRefit(FITTED)
    prompt = StepShape(0, 0, 200, 20100, 200, 0.0, 1, 1)
    for shape in shapes(300):
        if not shape.num_prefill_tokens:
            refit.observe(shape, 1.3 * FITTED.step_s(shape))
        refit.observe(prompt, FITTED.step_s(prompt))
    assert refit.costs_now.step_s(prompt) == pytest.approx(FITTED.step_s(prompt), rel=0.03)
    decode = StepShape(4, 400, num_sampled_rows=4)
    assert refit.costs_now.step_s(decode) > 1.1 * FITTED.step_s(decode)


def test_a_disturbed_step_moves_little() -> None:
    refit = StepRefit(FITTED)
    refit.observe(shapes(1)[0], 60.0)
    assert max(errors(refit.costs, FITTED)) < 0.03
    assert max(errors(refit.costs_now, FITTED)) < 0.3
    refit.observe(shapes(1)[0], FITTED.step_s(shapes(1)[0]))
    assert max(errors(refit.costs_now, FITTED)) < 0.05


def test_factors_stay_bounded() -> None:
    refit = StepRefit(FITTED)
    for _ in range(40):
        for shape in shapes(200):
            refit.observe(shape, 100.0 * FITTED.step_s(shape))
    for shape in shapes(20):
        assert refit.costs.step_s(shape) <= 4.0 * FITTED.step_s(shape) * (1 + 1e-9)
        assert refit.costs_now.step_s(shape) <= 10.0 * FITTED.step_s(shape) * (1 + 1e-9)


def test_times_that_cannot_be_are_not_believed() -> None:
    refit = StepRefit(FITTED)
    refit.observe(shapes(1)[0], 0.0)
    refit.observe(shapes(1)[0], -1.0)
    assert refit.costs is FITTED


def test_half_of_what_a_step_had_is_gone_with_the_next() -> None:
    """An echo, not a pace: steps alternate around what is usual, one of them is late by far."""
    refit = StepRefit(FITTED)
    (shape,) = shapes(1)
    refit.observe(shape, 1.3 * FITTED.step_s(shape))
    late = refit.costs_now.step_s(shape) / FITTED.step_s(shape)
    assert 1.1 < late < 1.2
    refit.observe(shape, FITTED.step_s(shape))
    assert refit.costs_now.step_s(shape) / FITTED.step_s(shape) == pytest.approx(1.0, abs=0.02)
