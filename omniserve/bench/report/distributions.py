"""How latencies are summed up: percentiles, curves, bins of time. Milliseconds throughout."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omniserve.bench.report.run_summary import Latency, Point
from omniserve.percentiles import percentile

Values = NDArray[np.float64]

_CURVE_PERCENTS = (*range(100), 99.5, 99.9, 100)
_MAX_POINTS = 600
_MAX_BINS = 40


def latency_of(values: Values) -> Latency:
    if not len(values):
        return Latency(0)
    return Latency(
        num=len(values),
        mean_ms=float(values.mean()),
        p50_ms=percentile(values, 50),
        p90_ms=percentile(values, 90),
        p99_ms=percentile(values, 99),
        max_ms=float(values.max()),
    )


def curve_of(values: Values) -> list[Point]:
    """The empirical distribution at every percent: (value, share at or below it)."""
    if not len(values):
        return []
    found = np.percentile(values, _CURVE_PERCENTS)
    return [(float(at), share / 100) for at, share in zip(found, _CURVE_PERCENTS, strict=True)]


def some_of(points: Sequence[Point]) -> list[Point]:
    """Every point, or evenly chosen ones where there are too many to draw."""
    return list(points[:: math.ceil(len(points) / _MAX_POINTS) or 1])


def bin_width_s(duration_s: float) -> float:
    """The first of 1, 2, 5, 10 … seconds that cuts the window into few enough bins."""
    power = 1.0
    while True:
        for digit in (1, 2, 5):
            if duration_s <= digit * power * _MAX_BINS:
                return digit * power
        power *= 10


def num_bins(duration_s: float, bin_s: float) -> int:
    return max(1, math.ceil(duration_s / bin_s - 1e-9))


def percentile_by_bin(
    at_s: Values, values: Values, duration_s: float, bin_s: float, percent: float
) -> list[float | None]:
    """Of the values whose time lies in each bin of [0, duration)."""
    places = np.floor(at_s / bin_s).astype(int)
    return [
        percentile(values[places == place], percent) for place in range(num_bins(duration_s, bin_s))
    ]


def rate_by_bin(at_s: Values, duration_s: float, bin_s: float) -> list[float]:
    """Events per second in each bin of [0, duration); the last bin may be shorter."""
    inside = at_s[(at_s >= 0) & (at_s < duration_s)]
    total = num_bins(duration_s, bin_s)
    counts = np.bincount(np.floor(inside / bin_s).astype(int), minlength=total)
    widths = [min(bin_s, duration_s - place * bin_s) for place in range(total)]
    return [float(count) / width for count, width in zip(counts, widths, strict=True)]
