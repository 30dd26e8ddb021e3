"""Axes of charts: which values they span, and which of them are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_TICKS = 8


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and where to write them."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high end."""
        if self.is_log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(label: str, high: float, low: float = 0.0) -> Axis:
    """Up to the first round number at or above `high`."""
    high = max(high, low + 1e-9)
    step = _round_step((high - low) / (_MAX_TICKS - 2))
    num_steps = math.ceil((high - low) / step - 1e-9)
    ticks = tuple(low + step * index for index in range(num_steps + 1))
    return Axis(label, low, ticks[-1], ticks)


def time_axis(label: str, high: float) -> Axis:
    """Ends exactly at `high`, with ticks at round numbers below it."""
    rounded = linear_axis(label, high)
    return Axis(label, 0.0, high, tuple(tick for tick in rounded.ticks if tick <= high))


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """From the first number of 1, 2, 5, 10 … at or below all values to the first one above."""
    positive = [value for value in values if value > 0] or [1.0, 10.0]
    # A decade more than needed: the logarithm of a number just below a power of ten may be whole.
    first = math.floor(math.log10(min(positive))) - 1
    last = math.ceil(math.log10(max(positive))) + 1
    steps = [digit * 10.0**power for power in range(first, last) for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= min(positive))
    high = min(step for step in [*steps, 10.0**last] if step > max(positive))
    ticks = tuple(step for step in steps if low <= step <= high)
    if len(ticks) > _MAX_TICKS:
        ticks = tuple(tick for tick in ticks if tick in steps[::3])
    return Axis(label, low, high, ticks, is_log=True)


def _round_step(step: float) -> float:
    """The first of 1, 2, 5, 10 … times a power of ten at or above `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * 0.9999)
