"""Synthetic traces are like the real ones that they are named after.

The figures of the real traces below were measured on the whole traces; windows that the end of a
trace cuts short are left out of the Fano factors.
"""

import itertools
import statistics
from collections import Counter
from dataclasses import dataclass

import pytest
from trace_measures import cv, times

from omniserve.bench.trace.synth.lengths import LEVELS
from omniserve.bench.trace.synth.recipes import RECIPES
from omniserve.bench.trace.synth.synthesise import synthesise
from omniserve.bench.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class Real:
    """What a real trace is like, and how near a synthetic one has to come."""

    rate_per_s: float
    minute_cv: float
    fano: dict[int, float]
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    max_prompt_ks: float = 0.04
    whole_cv: float | None = None
    reused_share: float | None = None
    output_by_prompt: tuple[float, ...] | None = None
    """Median output of five groups of requests, by prompt."""


REAL = {
    "azure-conv": Real(
        rate_per_s=5.53,
        minute_cv=1.02,
        fano={1: 1.4, 10: 4.0, 60: 16.1},
        prompt=(
            *(2, 29, 91, 181, 207, 372, 387, 396, 403, 703, 1020, 1071, 1130, 1189, 1315, 1876),
            *(2734, 4083, 4098, 4142, 4831, 14050),
        ),
        output=(
            *(7, 16, 24, 41, 54, 67, 77, 85, 91, 103, 129, 177, 384, 395, 400, 411, 424, 451, 540),
            *(601, 643, 1000),
        ),
        # Its lengths stand on a few steps, between which a table of quantiles is a ramp.
        max_prompt_ks=0.08,
        whole_cv=1.09,
        output_by_prompt=(106, 97, 399, 401, 78),
    ),
    "azure-code": Real(
        rate_per_s=2.57,
        minute_cv=3.2,
        fano={1: 13, 10: 71, 60: 161},
        prompt=(
            *(3, 17, 35, 75, 147, 232, 385, 578, 770, 1075, 1469, 1909, 2433, 2744, 3192, 3920),
            *(5187, 7303, 7436, 7436, 7436, 7437),
        ),
        output=(
            *(6, 6, 6, 6, 7, 7, 8, 9, 9, 11, 13, 16, 20, 24, 29, 39, 55, 90, 170, 251, 359, 1899),
        ),
        whole_cv=13.15,
        output_by_prompt=(14, 13, 13, 12, 13),
    ),
    "mooncake-conv": Real(
        rate_per_s=3.40,
        minute_cv=1.2,
        fano={10: 2.1, 60: 2.8},
        prompt=(
            *(891, 894, 896, 901, 964, 1261, 1662, 2306, 3263, 4993, 6909, 9570, 13196, 15367),
            *(17869, 21464, 27367, 39550, 66448, 85400, 100810, 126195),
        ),
        output=(
            *(1, 3, 3, 10, 24, 46, 100, 156, 213, 291, 350, 399, 447, 472, 504, 543, 597, 698),
            *(891, 1118, 1567, 2000),
        ),
        reused_share=0.366,
    ),
    "mooncake-synthetic": Real(
        rate_per_s=3.91,
        minute_cv=1.0,
        fano={1: 1.1, 10: 1.4},
        prompt=(
            *(13, 16, 18, 22, 30, 45, 88, 277, 912, 4364, 11587, 16290, 19408, 23175, 28425),
            *(34319, 38611, 48904, 56631, 66456, 76328, 191378),
        ),
        output=(
            *(1, 2, 2, 2, 4, 6, 8, 11, 16, 32, 69, 126, 210, 250, 288, 332, 389, 519, 688, 768),
            *(782, 893),
        ),
        reused_share=0.640,
    ),
}


@pytest.fixture(scope="module", params=REAL)
def pair(request: pytest.FixtureRequest) -> tuple[Real, Trace]:
    """A real trace's figures and at least 10,000 requests made by the recipe of its name."""
    recipe = RECIPES[request.param]
    num_requests = max(10_000, round(recipe.rate_per_s * recipe.duration_s))
    return REAL[request.param], synthesise(recipe, 0, num_requests=num_requests)


def fano(trace: Trace, window_s: int) -> float:
    arrivals = Counter(int(at_s // window_s) for at_s in times(trace))
    counts = [arrivals[window] for window in range(int(trace.duration_s // window_s))]
    return statistics.pvariance(counts) / statistics.fmean(counts)


def ks_distance(tokens: list[int], table: tuple[int, ...]) -> float:
    """The largest distance between the distribution of tokens and the line through a table of
    quantiles. A count stands for the interval around it, as wide as one token."""

    def share_of_table(value: float) -> float:
        if value >= table[-1]:
            return 1.0
        place = max((each for each, level in enumerate(table) if level <= value), default=None)
        if place is None:
            return 0.0
        low, high = table[place], table[place + 1]
        return LEVELS[place] + (LEVELS[place + 1] - LEVELS[place]) * (value - low) / (high - low)

    distance, number = 0.0, 0
    for value, repeats in sorted(Counter(tokens).items()):
        distance = max(distance, abs(number / len(tokens) - share_of_table(value - 0.5)))
        number += repeats
        distance = max(distance, abs(number / len(tokens) - share_of_table(value + 0.5)))
    return distance


def test_the_rate_is_the_real_one(pair: tuple[Real, Trace]) -> None:
    real, trace = pair
    assert len(trace) / trace.duration_s == pytest.approx(real.rate_per_s, rel=0.07)


def test_gaps_vary_as_the_real_ones(pair: tuple[Real, Trace]) -> None:
    real, trace = pair
    minutes = itertools.groupby(times(trace), key=lambda at_s: int(at_s // 60))
    arrivals = [list(each) for _, each in minutes]
    cvs = [cv(each) for each in arrivals if len(each) > 10]
    assert statistics.median(cvs) == pytest.approx(real.minute_cv, rel=0.15)
    if real.whole_cv is not None:
        assert cv(times(trace)) == pytest.approx(real.whole_cv, rel=0.35)


def test_bursts_last_as_long_as_the_real_ones(pair: tuple[Real, Trace]) -> None:
    real, trace = pair
    for window_s, factor in real.fano.items():
        assert factor / 2 <= fano(trace, window_s) <= factor * 2, window_s


def test_lengths_are_distributed_as_the_real_ones(pair: tuple[Real, Trace]) -> None:
    real, trace = pair
    assert ks_distance([each.prompt_tokens for each in trace], real.prompt) <= real.max_prompt_ks
    assert ks_distance([each.output_tokens for each in trace], real.output) <= 0.04


def test_prompts_tell_of_outputs_as_the_real_ones(pair: tuple[Real, Trace]) -> None:
    real, trace = pair
    ordered = sorted(trace, key=lambda request: request.prompt_tokens)
    size = len(ordered) / 5
    groups = [ordered[round(size * k) : round(size * (k + 1))] for k in range(5)]
    medians = [statistics.median(each.output_tokens for each in group) for group in groups]
    if real.output_by_prompt is not None:
        assert medians == pytest.approx(real.output_by_prompt, rel=0.15)
    elif "synthetic" in trace.name:
        # Rank correlation -0.52: outputs fall as prompts grow.
        assert medians == sorted(medians, reverse=True)
        assert medians[0] > 10 * medians[-1]


def test_prefixes_are_reused_as_the_real_ones(pair: tuple[Real, Trace]) -> None:
    real, trace = pair
    seen: set[int] = set()
    num_blocks = num_reused = 0
    for request in trace:
        num_blocks += len(request.prefix_hashes)
        num_reused += len(seen.intersection(request.prefix_hashes))
        seen.update(request.prefix_hashes)
    if real.reused_share is None:
        assert num_blocks == 0
    else:
        assert num_reused / num_blocks == pytest.approx(real.reused_share, abs=0.05)
