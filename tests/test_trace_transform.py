"""Traces are cut, sped up, shortened and filtered without becoming other traces."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.samples import sample_trace
from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS, Trace, TraceRequest
from omniserve.bench.trace.transform import (
    only,
    scale,
    slice_trace,
    spread_ticks,
    tick_s,
    with_tier,
    without_failed,
)

FEW = Trace(
    "few",
    (
        TraceRequest(0.0, 10, 5, tier="chat", tenant="a"),
        TraceRequest(1.0, 20, 0, tier="chat", tenant="b", failed=True),
        TraceRequest(2.0, 30, 7, tier="batch", tenant="a"),
    ),
)


def times(trace: Trace) -> list[float]:
    return [request.arrival_s for request in trace]


def with_prefix(prompt_tokens: int, hashes: tuple[int, ...]) -> TraceRequest:
    return TraceRequest(0.0, prompt_tokens, 1, prefix_hashes=hashes)


def test_a_slice_holds_its_start_and_not_its_end() -> None:
    assert times(slice_trace(FEW, 1.0, 2.0)) == [0.0]
    assert slice_trace(FEW, 1.0, 2.0).requests[0].prompt_tokens == 20
    assert times(slice_trace(FEW, 0.5)) == [0.5, 1.5]
    assert slice_trace(FEW) == FEW
    with pytest.raises(TraceError, match="few: nothing arrives from 3 s to inf s; .* at 2 s"):
        slice_trace(FEW, 3.0)


def test_a_higher_rate_is_shorter_time() -> None:
    """None is left out, and gaps keep their proportions, so the burstiness stays."""
    trace = sample_trace("azure-code")
    fast = scale(trace, rate=4.0)
    assert len(fast) == len(trace)
    assert times(fast) == [at_s / 4 for at_s in times(trace)]
    assert [each.prompt_tokens for each in fast] == [each.prompt_tokens for each in trace]


def test_lengths_are_multiplied_and_then_clipped() -> None:
    def tokens(trace: Trace) -> list[tuple[int, int]]:
        return [(request.prompt_tokens, request.output_tokens) for request in trace]

    assert tokens(scale(FEW, lengths=2.0)) == [(20, 10), (40, 0), (60, 14)]
    assert tokens(scale(FEW, lengths=0.01)) == [(1, 1), (1, 0), (1, 1)]
    clipped = scale(FEW, lengths=2.0, max_prompt_tokens=50, max_output_tokens=8)
    assert tokens(clipped) == [(20, 8), (40, 0), (50, 8)]
    assert scale(FEW) == FEW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: scale(FEW, rate=0.0), "rate: 0 is not allowed"),
        (lambda: scale(FEW, rate=math.nan), "rate: nan is not allowed"),
        (lambda: scale(FEW, lengths=-1.0), "lengths: -1 is not allowed"),
        (lambda: scale(FEW, max_prompt_tokens=0), "max_prompt_tokens: 0 is not allowed"),
        (lambda: scale(FEW, max_output_tokens=0), "max_output_tokens: 0 is not allowed"),
        (lambda: only(FEW, tier="gold"), "few: no request has tier 'gold'"),
        (lambda: only(FEW, tier="batch", tenant="b"), "tier 'batch' and tenant 'b'"),
        (lambda: without_failed(slice_trace(FEW, 1.0, 2.0)), "every request of it failed"),
    ],
)
def test_what_cannot_be_done_is_refused(change: Callable[[], Trace], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        change()


def test_requests_are_kept_by_tier_tenant_and_success() -> None:
    assert times(only(FEW, tier="chat")) == [0.0, 1.0]
    assert times(only(FEW, tenant="a")) == [0.0, 2.0]
    assert times(only(FEW, tier="chat", tenant="a")) == [0.0]
    assert times(without_failed(FEW)) == [0.0, 2.0]
    assert {request.tier for request in with_tier(FEW, "gold")} == {"gold"}


def test_clipped_prompts_keep_their_first_blocks() -> None:
    trace = Trace("t", (with_prefix(1100, (4, 5, 6)),))
    clipped = scale(trace, max_prompt_tokens=600).requests[0]
    assert clipped.prefix_hashes == (4, 5)


@settings(deadline=None)
@given(
    st.floats(0.1, 5.0),
    st.integers(0, 6),
    st.lists(st.integers(1, 3000), min_size=2, max_size=2),
)
def test_scaled_prefixes_are_shared_in_proportion(
    factor: float, num_shared: int, extra: list[int]
) -> None:
    """Two prompts share as many blocks as their common part has, and no block twice."""
    prompts = [num_shared * PREFIX_BLOCK_TOKENS + tokens for tokens in extra]
    shared = tuple(range(num_shared))
    made = []
    for number, prompt_tokens in enumerate(prompts, start=1):
        num_blocks = math.ceil(prompt_tokens / PREFIX_BLOCK_TOKENS)
        own = tuple(range(1000 * number, 1000 * number + num_blocks - num_shared))
        made.append(with_prefix(prompt_tokens, shared + own))
    first, second = scale(Trace("t", tuple(made)), lengths=factor)
    for request in (first, second):
        assert len(request.prefix_hashes) == math.ceil(request.prompt_tokens / PREFIX_BLOCK_TOKENS)
        assert len(set(request.prefix_hashes)) == len(request.prefix_hashes)
    common = 0
    for one, other in zip(first.prefix_hashes, second.prefix_hashes, strict=False):
        if one != other:
            break
        common += 1
    assert set(first.prefix_hashes[common:]).isdisjoint(second.prefix_hashes[common:])
    # The block in which the common part ends falls to one side or the other.
    most = min(len(first.prefix_hashes), len(second.prefix_hashes))
    assert abs(common - min(num_shared * factor, most)) <= 1


def coarse(step_s: float = 3.0, num_ticks: int = 40) -> Trace:
    """As Mooncake's: several requests a tick, some ticks empty."""
    ticks = [tick for tick in range(num_ticks) if tick % 7 != 3]
    made = [TraceRequest(tick * step_s, tick + 1, 1) for tick in ticks for _ in range(tick % 4 + 1)]
    return Trace("coarse", tuple(made))


def test_coarse_times_are_spread_within_their_ticks() -> None:
    trace = coarse()
    assert tick_s(trace) == 3.0
    spread = spread_ticks(trace, seed=1)
    assert times(spread) == sorted(times(spread))
    assert len(set(times(spread))) == len(trace)
    assert tick_s(spread) is None
    for request in spread:
        tick = request.prompt_tokens - 1
        assert tick * 3.0 <= request.arrival_s <= (tick + 1) * 3.0
    assert spread == spread_ticks(trace, seed=1) != spread_ticks(trace, seed=2)


def test_fine_times_stay() -> None:
    """Volleys that share a microsecond are no ticks: other gaps are as short."""
    volleys = [at_s + gap_s for at_s in (0.0, 60.0, 120.0) for gap_s in (0, 0, 0, 1e-6, 1e-6, 0.5)]
    for trace in (
        sample_trace("azure-code"),
        Trace("one", (TraceRequest(0, 1, 1),) * 5),
        Trace("volleys", tuple(TraceRequest(at_s, 1, 1) for at_s in volleys)),
    ):
        assert tick_s(trace) is None
        assert spread_ticks(trace) is trace
