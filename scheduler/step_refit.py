"""Keeps a model of step times true to the steps that are really run."""

from collections.abc import Mapping
from dataclasses import replace
from math import exp, log

from scheduler.step_time import StepCosts, StepShape

_RATE = 0.05
"""Of a step's error, what the groups of terms are corrected by at once."""
_MOST_ERROR = 0.5
"""Logarithm: a step that was disturbed must not be believed."""
_MOST_FACTOR = 4.0
_HALF_LIFE_STEPS = 20_000
"""In which a correction that no step confirms is half forgotten."""
_FORGETTING = 0.5 ** (1.0 / _HALF_LIFE_STEPS)
_PACE_RATE = 0.15
"""The same for the pace: how fast a machine is changes within some steps, with its clock and with
what its other cores do to caches and memory."""
_ECHO = 0.4
"""Part of a step's error, against the pace, that the next step is expected to have too."""
_MOST_LATE, _MOST_EARLY = 0.1, 0.3
"""Of which the pace takes notice: a step that is late may have been disturbed, one that is early
was not."""
_MOST_LOG_PACE = log(2.0)
_WORTH_REBUILDING = 0.01
_FEW_ROWS = 64
"""Up to here rows are multiplied by kernels of their own on a CPU."""

_TERMS: Mapping[str, tuple[str, ...]] = {
    "overhead": ("overhead_s", "cold_step_s"),
    "decode": ("decode_row_s", "decode_context_token_s"),
    "prefill": (
        "prefill_token_s",
        "prefill_pair_s",
        "prefill_context_token_s",
        "prefill_step_s",
        "prefill_chunk_s",
    ),
    "lanes": ("lane_row_s",),
    "sampling": ("sampled_row_s",),
}
_FEW, _MANY = "dense, few rows", "dense, many rows"


class StepRefit:
    """One factor a group of terms, moved by each step in proportion to the group's part in it; and
    the pace, one factor for all of them, which follows the last few steps and echoes the last one.

    Exponentiated gradient descent on the squared error of the logarithm: factors stay positive, a
    term that has no part in a step is not moved by it, and one step moves none by more than 2.5 %.
    """

    def __init__(self, fitted: StepCosts) -> None:
        self._fitted = fitted
        self._factors = dict.fromkeys((*_TERMS, _FEW, _MANY), 1.0)
        self._costs, self._built_with = fitted, dict(self._factors)
        self._log_pace, self._echo, self._built_pace = 0.0, 0.0, 0.0
        self._costs_now = fitted

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
        error = log(seconds / predicted_s)
        self._follow(error)
        per_second = _RATE * _bounded(error, _MOST_ERROR) / predicted_s
        for name, factor in self._factors.items():
            moved = factor**_FORGETTING * exp(per_second * parts[name])
            self._factors[name] = min(_MOST_FACTOR, max(1.0 / _MOST_FACTOR, moved))
        self._rebuild()

    def _follow(self, error: float) -> None:
        """The pace of a machine reverts: what the last step had is half gone with the next."""
        surprise = error - self._log_pace
        self._echo = _ECHO * _bounded(surprise, _MOST_ERROR)
        surprise = min(_MOST_LATE, max(-_MOST_EARLY, surprise))
        self._log_pace = _bounded(self._log_pace + _PACE_RATE * surprise, _MOST_LOG_PACE)

    def _parts(self, shape: StepShape) -> dict[str, float]:
        """Seconds of each group, with the corrections so far."""
        fitted, factors = self._fitted, self._factors
        num_rows = shape.num_decode_rows + shape.num_prefill_tokens + shape.num_lane_rows
        dense_s = fitted.dense_s(num_rows) if num_rows else 0.0
        few_s = min(dense_s, fitted.dense_s(_FEW_ROWS))
        parts = {
            "overhead": fitted.overhead_s + fitted.cold_step_s * shape.coldness,
            "decode": fitted.decode_row_s * shape.num_decode_rows
            + fitted.decode_context_token_s * shape.decode_context_tokens,
            "prefill": fitted.prefill_token_s * shape.num_prefill_tokens
            + fitted.prefill_pair_s * shape.prefill_pairs
            + fitted.prefill_context_token_s * shape.prefill_context_tokens
            + (fitted.prefill_step_s if shape.num_prefill_tokens else 0.0)
            + fitted.prefill_chunk_s * shape.num_prefill_chunks,
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
            self._costs = self._corrected()
        pace = self._log_pace + self._echo
        if is_other or abs(pace - self._built_pace) >= _WORTH_REBUILDING:
            self._built_pace = pace
            self._costs_now = self._costs.times(exp(pace))

    def _corrected(self) -> StepCosts:
        fitted, factors = self._fitted, self._factors
        scaled = {
            cost: factors[name] * getattr(fitted, cost)
            for name, costs in _TERMS.items()
            for cost in costs
        }
        few_s = fitted.dense_s(_FEW_ROWS)
        ladder = tuple(
            (rows, factors[_FEW] * min(rung, few_s) + factors[_MANY] * max(0.0, rung - few_s))
            for rows, rung in fitted.dense_ladder
        )
        return replace(fitted, dense_ladder=ladder, **scaled)


def _bounded(number: float, most: float) -> float:
    return min(most, max(-most, number))
