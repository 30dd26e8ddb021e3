"""Synthetic traces are sound, and the same for the same seed."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trace_measures import cv, times

from omniserve.bench.trace.formats.read_write import write_trace
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.samples import sample_trace
from omniserve.bench.trace.synth.envelopes import AllAtOnce, OnOff, Wandering
from omniserve.bench.trace.synth.fitted import recipe_like
from omniserve.bench.trace.synth.lengths import PairLengths, ZipfLengths
from omniserve.bench.trace.synth.recipes import RECIPES, Recipe, Stragglers, Tenants, named_recipe
from omniserve.bench.trace.synth.sessions import SessionModel, Sessions
from omniserve.bench.trace.synth.synthesise import synthesise
from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS, Trace, TraceRequest


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


def test_a_part_in_which_nothing_was_recorded_has_requests_too() -> None:
    late = Trace("late", tuple(TraceRequest(300 + place / 2, 10, 10) for place in range(300)))
    made = times(synthesise(recipe_like(late), duration_s=30.0))
    assert made == sorted(made)
    assert 0.0 <= made[0] and made[-1] < 30.0


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


def test_a_wandering_rate_settles_where_it_should() -> None:
    rates = Wandering(memory=0.72, cv=0.22).rates(20_000, np.random.default_rng(0))
    assert rates.std() / rates.mean() == pytest.approx(0.22, rel=0.05)
    logs = np.log(rates)
    assert np.corrcoef(logs[:-1], logs[1:])[0, 1] == pytest.approx(0.72, abs=0.02)
