"""Keeps a model of step times true to the steps that are really run."""

from collections.abc import Mapping
from dataclasses import replace
from math import exp, log

from scheduler.machine_pace import MachinePace
from scheduler.step_time import StepCosts, StepShape

_RATE = 0.05
"""Of a step's error, what the groups of terms are corrected by at once."""
_MOST_ERROR = 0.5
"""Logarithm: a step that was disturbed must not be believed."""
_MOST_FACTOR = 4.0
_HALF_LIFE_STEPS = 20_000
"""In which a correction that no step confirms is half forgotten."""
_FORGETTING = 0.5 ** (1.0 / _HALF_LIFE_STEPS)
_WORTH_REBUILDING = 0.01
_FEW_ROWS = 64
"""Up to here rows are multiplied by kernels of their own on a CPU."""

_TERMS: Mapping[str, tuple[str, ...]] = {
    "overhead": ("overhead_s", "cold_step_s"),
    "decode": ("decode_row_s", "decode_context_token_s"),
    "prefill": ("prefill_token_s", "prefill_step_s", "prefill_chunk_s"),
    "prefill attention": ("prefill_pair_s", "prefill_context_token_s"),
    "lanes": ("lane_row_s",),
    "sampling": ("sampled_row_s",),
}
_FEW, _MANY = "dense, few rows", "dense, many rows"
_OF_PROMPTS = ("prefill", "prefill attention", _MANY)
"""Groups that prompts bring; they compute, where the others read memory, and have a pace of their
own."""


class StepRefit:
    """One factor a group of terms, moved by each step in proportion to the group's part in it; and
    the machine's pace, of what prompts bring and of all the rest.

    Exponentiated gradient descent on the squared error of the logarithm: factors stay positive, a
    term that has no part in a step is not moved by it, and one step moves none by more than 2.5 %.
    """

    def __init__(self, fitted: StepCosts) -> None:
        self._fitted = fitted
        self._few_s = fitted.dense_s(_FEW_ROWS)
        self._factors = dict.fromkeys((*_TERMS, _FEW, _MANY), 1.0)
        self._pace = MachinePace()
        self._costs, self._built_with = fitted, dict(self._factors)
        self._costs_now, self._built_now = fitted, (0.0, 0.0)

    @property
    def costs(self) -> StepCosts:
        """With the corrections so far, at the usual pace: for what is to come later."""
        return self._costs

    @property
    def costs_now(self) -> StepCosts:
        """Of the next step."""
        return self._costs_now

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of this shape took so long, undisturbed as far as is known."""
        parts = self._parts(shape)
        predicted_s = sum(parts.values())
        if predicted_s <= 0.0 or seconds <= 0.0:
            return
        prompts_s = sum(parts[name] for name in _OF_PROMPTS)
        self._pace.observe(prompts_s, predicted_s - prompts_s, seconds)
        error = min(_MOST_ERROR, max(-_MOST_ERROR, log(seconds / predicted_s)))
        per_second = _RATE * error / predicted_s
        for name, factor in self._factors.items():
            moved = factor**_FORGETTING * exp(per_second * parts[name])
            self._factors[name] = min(_MOST_FACTOR, max(1.0 / _MOST_FACTOR, moved))
        self._rebuild()

    def _parts(self, shape: StepShape) -> dict[str, float]:
        """Seconds of each group, with the corrections so far."""
        fitted, factors = self._fitted, self._factors
        num_rows = shape.num_decode_rows + shape.num_prefill_tokens + shape.num_lane_rows
        dense_s = fitted.dense_s(num_rows) if num_rows else 0.0
        few_s = min(dense_s, self._few_s)
        parts = {
            "overhead": fitted.overhead_s + fitted.cold_step_s * shape.coldness,
            "decode": fitted.decode_row_s * shape.num_decode_rows
            + fitted.decode_context_token_s * shape.decode_context_tokens,
            "prefill": fitted.prefill_token_s * shape.num_prefill_tokens
            + (fitted.prefill_step_s if shape.num_prefill_tokens else 0.0)
            + fitted.prefill_chunk_s * shape.num_prefill_chunks,
            "prefill attention": fitted.prefill_pair_s * shape.prefill_pairs
            + fitted.prefill_context_token_s * shape.prefill_context_tokens,
            "lanes": fitted.lane_row_s * shape.num_lane_rows,
            "sampling": fitted.sampled_row_s * shape.num_sampled_rows,
            _FEW: few_s,
            _MANY: dense_s - few_s,
        }
        return {name: factors[name] * part_s for name, part_s in parts.items()}

    def _rebuild(self) -> None:
        """Costs are made anew where that makes a difference: it is not free."""
        old = self._built_with
        is_other = any(
            abs(factor - old[name]) >= _WORTH_REBUILDING * old[name]
            for name, factor in self._factors.items()
        )
        if is_other:
            self._built_with = dict(self._factors)
            self._costs = self._with(self._factors)
        pace = self._pace.of_prompts, self._pace.of_others
        moved = max(abs(new - built) for new, built in zip(pace, self._built_now, strict=True))
        if is_other or moved >= _WORTH_REBUILDING:
            self._built_now = pace
            of_prompts, of_others = exp(pace[0]), exp(pace[1])
            self._costs_now = self._with(
                {
                    name: factor * (of_prompts if name in _OF_PROMPTS else of_others)
                    for name, factor in self._built_with.items()
                }
            )

    def _with(self, factors: Mapping[str, float]) -> StepCosts:
        fitted, few_s = self._fitted, self._few_s
        scaled = {
            cost: factors[name] * getattr(fitted, cost)
            for name, costs in _TERMS.items()
            for cost in costs
        }
        few, many = factors[_FEW], factors[_MANY]
        ladder = tuple(
            (rows, few * min(rung, few_s) + many * max(0.0, rung - few_s))
            for rows, rung in fitted.dense_ladder
        )
        return replace(fitted, dense_ladder=ladder, **scaled)
