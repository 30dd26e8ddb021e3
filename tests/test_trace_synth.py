"""Synthetic traces are like the real ones they are named after, and the same for the same seed.

The figures of the real traces below were measured on the whole traces; windows that the end of a
trace cuts short are left out of the Fano factors.
"""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from omniserve.bench.trace.envelopes import AllAtOnce, OnOff, Wandering
from omniserve.bench.trace.fitted import recipe_like
from omniserve.bench.trace.formats import write_trace
from omniserve.bench.trace.lengths import LEVELS, PairLengths, ZipfLengths
from omniserve.bench.trace.recipes import RECIPES, Recipe, Stragglers, Tenants, named_recipe
from omniserve.bench.trace.rows import TraceError
from omniserve.bench.trace.samples import sample_trace
from omniserve.bench.trace.sessions import SessionModel, Sessions
from omniserve.bench.trace.synth import synthesise
from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS, Trace, TraceRequest


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


def cv(times_s: list[float]) -> float:
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(times_s)]
    return statistics.pstdev(gaps_s) / statistics.fmean(gaps_s)


def times(trace: Trace) -> list[float]:
    return [request.arrival_s for request in trace]


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


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_makes_the_same_bytes(name: str, tmp_path: Path) -> None:
    recipe = replace(RECIPES[name], failed_share=0.1, tenants=Tenants(5))
    for file, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_trace(synthesise(recipe, seed, num_requests=300), tmp_path / file)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "same").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_requests_are_sound(name: str) -> None:
    trace = synthesise(RECIPES[name], 1, num_requests=500)
    assert len(trace) == 500
    assert times(trace) == sorted(times(trace))
    assert trace.duration_s < 500 / RECIPES[name].rate_per_s
    assert all(request.prompt_tokens >= 1 for request in trace)
    assert all((request.output_tokens == 0) == request.failed for request in trace)


def by_session(trace: Trace) -> list[list[TraceRequest]]:
    sessions: dict[str, list[TraceRequest]] = {}
    for request in trace:
        sessions.setdefault(request.session, []).append(request)
    return list(sessions.values())


def test_sessions_grow_by_prompt_and_answer() -> None:
    trace = synthesise(named_recipe("mooncake-conv"), 2, num_requests=3000)
    sessions = by_session(trace)
    assert any(len(turns) > 3 for turns in sessions)
    for turns in sessions:
        for last, request in itertools.pairwise(turns):
            assert request.prompt_tokens > last.prompt_tokens + last.output_tokens
            assert request.arrival_s > last.arrival_s
            num_kept = last.prompt_tokens // PREFIX_BLOCK_TOKENS
            assert request.prefix_hashes[:num_kept] == last.prefix_hashes[:num_kept]
            assert set(request.prefix_hashes[num_kept:]).isdisjoint(last.prefix_hashes)


def test_a_hash_stands_for_a_whole_prefix() -> None:
    """One place in the prompt, and one block before it."""
    trace = synthesise(named_recipe("chat"), 0, num_requests=3000)
    before: dict[int, tuple[int, int]] = {}
    for request in trace:
        hashes = request.prefix_hashes
        assert len(hashes) == math.ceil(request.prompt_tokens / PREFIX_BLOCK_TOKENS)
        for place, each in enumerate(hashes):
            last = hashes[place - 1] if place else -1
            assert before.setdefault(each, (place, last)) == (place, last)
    system_block = [
        request.prefix_hashes[0]
        for request in trace
        if request.prompt_tokens >= PREFIX_BLOCK_TOKENS
    ]
    assert set(system_block) == {0}


def steady(**changes: object) -> Recipe:
    recipe = Recipe(
        name="steady",
        about="",
        rate_per_s=10.0,
        duration_s=100.0,
        envelope=Wandering(memory=0.0, cv=0.0),
        gap_cv=1.0,
        lengths=PairLengths(((10, 20), (30, 40))),
    )
    return replace(recipe, **changes)  # type: ignore[arg-type]


def test_two_of_rate_duration_and_number_make_the_third() -> None:
    recipe = steady()
    for trace, num_requests, duration_s in (
        (synthesise(recipe), 1000, 100),
        (synthesise(recipe, rate_per_s=20.0), 2000, 100),
        (synthesise(recipe, duration_s=10.0), 100, 10),
        (synthesise(recipe, num_requests=50), 50, 5),
        (synthesise(recipe, num_requests=50, rate_per_s=1.0), 50, 50),
        (synthesise(recipe, num_requests=50, duration_s=200.0), 50, 200),
    ):
        assert len(trace) == num_requests
        assert 0.8 * duration_s < trace.duration_s < duration_s
    with pytest.raises(TraceError, match="give two of the three"):
        synthesise(recipe, rate_per_s=1.0, duration_s=1.0, num_requests=1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_sizes_are_positive(value: float) -> None:
    for field in ("rate_per_s", "duration_s"):
        with pytest.raises(TraceError, match="is not allowed; allowed: a number above 0"):
            synthesise(steady(), **{field: value})  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="number of requests: 100000000000 is not allowed"):
        synthesise(steady(), rate_per_s=1e6, duration_s=1e5)


def test_one_request_is_a_trace() -> None:
    assert len(synthesise(steady(), num_requests=1)) == 1


def test_failures_leave_everything_else_as_it_is() -> None:
    whole = synthesise(steady(), 5)
    failing = synthesise(steady(failed_share=0.2), 5)
    assert times(failing) == times(whole)
    num_failed = sum(request.failed for request in failing)
    # 200 are expected; five standard deviations of a binomial are 63.
    assert abs(num_failed - 200) < 63
    for one, other in zip(whole, failing, strict=True):
        assert other.failed or one == other


def test_stragglers_have_a_long_tail() -> None:
    stragglers = Stragglers(share=0.1, min_tokens=1000, alpha=1.0, max_tokens=8000)
    outputs = [each.output_tokens for each in synthesise(steady(stragglers=stragglers), 0)]
    long = [tokens for tokens in outputs if tokens not in (20, 40)]
    assert 50 < len(long) < 150
    assert min(long) >= 1000 and max(long) == 8000
    # Half of a Pareto tail of alpha 1 is below twice its minimum.
    assert 0.3 < sum(tokens < 2000 for tokens in long) / len(long) < 0.7


def test_tenants_follow_zipf_and_sessions_have_one() -> None:
    counts = Counter(each.tenant for each in synthesise(steady(tenants=Tenants(3)), 0))
    shares = [counts[f"tenant-{rank}"] / 1000 for rank in (1, 2, 3)]
    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.08)
    recipe = replace(named_recipe("chat"), tenants=Tenants(3))
    for turns in by_session(synthesise(recipe, 0, num_requests=500)):
        assert len({request.tenant for request in turns}) == 1


def test_batches_arrive_at_once_and_calls_pause() -> None:
    assert set(times(synthesise(steady(envelope=AllAtOnce())))) == {0.0}
    pausing = synthesise(steady(envelope=OnOff(idle_share=0.5, cv=0.5)), 0, duration_s=6000.0)
    idle = set(range(100)) - {int(at_s // 60) for at_s in times(pausing)}
    assert 25 < len(idle) < 75
    # With every minute idle there would be no trace.
    assert len(synthesise(steady(envelope=OnOff(idle_share=0.999, cv=0.5)))) == 1000


def test_a_day_has_its_noon() -> None:
    recipe = steady(envelope=Wandering(memory=0.0, cv=0.0, day_swing=0.9), rate_per_s=0.1)
    day = times(synthesise(recipe, duration_s=86_400.0))
    quarters = Counter(int(at_s // 21_600) for at_s in day)
    # The integral of 1 - 0.9 cos over the quarters around midnight and around noon.
    assert (quarters[0] + quarters[3]) / len(day) == pytest.approx(0.5 - 0.9 / math.pi, abs=0.03)


def test_zipf_lengths_follow_the_law() -> None:
    recipe = steady(lengths=ZipfLengths(exponent=1.1, max_tokens=1024))
    counts = Counter(each.prompt_tokens for each in synthesise(recipe, num_requests=20_000))
    assert max(counts) <= 1024
    assert counts[1] / counts[2] == pytest.approx(2**1.1, rel=0.1)


def test_more_of_a_trace_is_like_it() -> None:
    trace = sample_trace("azure-conv")
    more = synthesise(recipe_like(trace), 1, num_requests=6000)
    assert more.name == "like-azure-conv"
    assert 6000 / more.duration_s == pytest.approx(len(trace) / trace.duration_s, rel=0.02)
    assert cv(times(more)) == pytest.approx(cv(times(trace)), rel=0.1)
    pairs = {(each.prompt_tokens, each.output_tokens) for each in trace}
    assert {(each.prompt_tokens, each.output_tokens) for each in more} <= pairs


def test_failures_of_a_trace_are_imitated_apart_from_its_lengths() -> None:
    made = synthesise(steady(failed_share=0.25), 1)
    recipe = recipe_like(made)
    assert recipe.failed_share == sum(each.failed for each in made) / 1000
    lengths = {(each.prompt_tokens, each.output_tokens) for each in synthesise(recipe)}
    assert lengths == {(10, 20), (30, 40), (10, 0), (30, 0)}


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([TraceRequest(float(k), 1, 1) for k in range(99)], "99 requests in 98 s are too little"),
        ([TraceRequest(0.0, 1, 1)] * 200, "200 requests in 0 s are too little"),
        ([TraceRequest(float(k), 1, 0, failed=True) for k in range(200)], "every request failed"),
    ],
)
def test_too_little_cannot_be_imitated(requests: list[TraceRequest], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        recipe_like(Trace("little", tuple(requests)))


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(TraceError, match="recipe: 'chats' is not allowed; allowed: azure-conv, "):
        named_recipe("chats")


def test_a_session_goes_on_after_thinking_and_before_its_end() -> None:
    """Thinking takes exactly 10 s here, and nobody waits for more than 100 s after it."""
    model = SessionModel(
        continuing_share=1.0, think_time_s=10.0, think_time_sigma=0.0, patience_s=100.0
    )
    sessions = Sessions(model, np.random.default_rng(0))
    asked = [
        (0.0, 100, 1),
        (9.9, 5000, 2),  # nobody has read an answer yet
        (10.0, 110, 3),  # the first one's context is 110 tokens: nothing would be new
        (10.1, 111, 1),
        (20.2, 9000, 2),  # of the two that fit, the one with the longer context
        (110.3, 121, 3),  # the first one's context is 121 tokens by now
        (300.0, 9999, 4),  # everyone has left
    ]
    assert [sessions.turn(at_s, tokens, 10).session for at_s, tokens, _ in asked] == [
        session for _, _, session in asked
    ]
