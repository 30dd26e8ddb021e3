"""What is computed from the client's observations, against slower ways to the same numbers."""

import pytest
from demo_builders import FAST, SLOW, make_trace
from hypothesis import given
from hypothesis import strategies as st

from omniserve.demo.measure import (
    RequestTrace,
    Tier,
    mean_by_bin,
    running_over_time,
    share_within,
    summarise,
    tokens_by_second,
    waiting_over_time,
)


def test_times_of_a_request() -> None:
    trace = RequestTrace("fast", sent_s=2.0)
    assert trace.is_waiting
    assert trace.ttft_ms is None
    trace.add(2.25, 1)
    trace.add(2.75, 3)
    assert not trace.is_waiting
    assert trace.tpot_ms is None, "a request that still runs has no final time per token"
    trace.end(2.8, "done")
    assert trace.ttft_ms == pytest.approx(250)
    assert trace.tpot_ms == pytest.approx(500 / 3)


def test_a_corrected_total_counts_in_the_time_per_token_and_in_no_other_second() -> None:
    trace = make_trace(ttft_s=0.5, tpot_s=1.0, num_tokens=3)
    trace.correct_total(5)
    assert trace.tpot_ms == pytest.approx(2000 / 4)
    assert tokens_by_second([trace], 0, 3) == pytest.approx([5 / 3] * 3)


@pytest.mark.parametrize(
    ("trace", "is_within"),
    [
        (make_trace(ttft_s=0.5, tpot_s=0.1), True),
        (make_trace(ttft_s=0.501, tpot_s=0.1), False),
        (make_trace(ttft_s=0.5, tpot_s=0.101), False),
        (make_trace(num_tokens=1), True),
        (make_trace(num_tokens=1, ttft_s=0.6), False),
        (make_trace(outcome="failed"), False),
        (make_trace(outcome="cut_off"), False),
        (make_trace(outcome="refused", num_tokens=0), False),
        (make_trace(outcome="failed", num_tokens=0), False),
    ],
)
def test_within_means_done_and_both_objectives(trace: RequestTrace, is_within: bool) -> None:
    # Powers of two keep the sums of the builder exact.
    assert share_within(FAST, [trace, make_trace(ttft_s=9)]) == (0.5 if is_within else 0)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 0.2), st.booleans()), max_size=30))
def test_share_within_counts_every_request(runs: list[tuple[float, float, bool]]) -> None:
    traces = [
        make_trace(ttft_s=ttft_s, tpot_s=tpot_s, outcome="done" if is_ok else "failed")
        for ttft_s, tpot_s, is_ok in runs
    ]
    met = 0
    for trace in traces:
        times = [at_s for at_s, _ in trace.arrivals]
        first_ms, gap_ms = 1000 * times[0], 1000 * (times[-1] - times[0]) / (len(times) - 1)
        met += trace.outcome == "done" and first_ms <= 500 and gap_ms <= 100
    assert share_within(FAST, traces) == (met / len(traces) if traces else None)


def test_a_tier_without_objectives_has_no_share() -> None:
    assert share_within(SLOW, [make_trace("slow")]) is None


def test_summary_counts_its_own_tier_and_tokens_of_the_window_only() -> None:
    traces = [
        make_trace(ttft_s=0.1, num_tokens=4),
        make_trace(ttft_s=0.3, num_tokens=4, sent_s=9.6),
        make_trace(outcome="failed", num_tokens=0),
        make_trace(outcome="cut_off", ttft_s=0.2, num_tokens=1),
        make_trace(outcome="refused", num_tokens=0),
        make_trace("slow", ttft_s=5, num_tokens=7),
    ]
    summary = summarise(FAST, traces, window_s=10.0)
    counts = (summary.num_sent, summary.num_done, summary.num_failed, summary.num_refused)
    assert (*counts, summary.num_cut_off) == (5, 2, 1, 1, 1)
    assert summary.ttft_p50_ms == pytest.approx(200)
    assert summary.tpot_p99_ms == pytest.approx(50)
    # 4 tokens, 2 of the second request before 10 s, and 1.
    assert summary.tokens_per_s == pytest.approx(0.7)
    assert summary.share_within == 0.4
    assert summary.is_goal_met is False
    assert summarise(SLOW, traces, 10.0).is_goal_met is None


@pytest.mark.parametrize(("goal", "is_met"), [(50.0, True), (50.1, False)])
def test_the_goal_is_the_tiers_percentile(goal: float, is_met: bool) -> None:
    tier = Tier("fast", "latency_sensitive", ttft_ms=500, tpot_ms=100, percentile=goal)
    summary = summarise(tier, [make_trace(), make_trace(ttft_s=1)], 10.0)
    assert summary.is_goal_met is is_met


spans = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.booleans()), max_size=12
)


@given(spans)
def test_counts_over_time_equal_counting_at_each_moment(
    spans: list[tuple[int, int, int, bool]],
) -> None:
    traces = []
    for sent, wait, run, has_ended in spans:
        trace = RequestTrace("fast", float(sent))
        trace.add(float(sent + wait), 1)
        if has_ended:
            trace.end(float(sent + wait + run), "done")
        traces.append(trace)
    running, waiting = running_over_time(traces), waiting_over_time(traces)
    for moment in range(45):
        at_s = moment + 0.5
        expected = sum(
            sent + wait < at_s and (not has_ended or at_s < sent + wait + run)
            for sent, wait, run, has_ended in spans
        )
        assert [count for begin_s, count in running if begin_s <= at_s][-1] == expected
        expected = sum(sent < at_s < sent + wait for sent, wait, _, _ in spans)
        assert [count for begin_s, count in waiting if begin_s <= at_s][-1] == expected


@given(spans, st.integers(1, 45), st.integers(1, 50))
def test_means_by_bin_keep_the_area(
    spans: list[tuple[int, int, int, bool]], until: int, num_bins: int
) -> None:
    traces = []
    for sent, wait, _, _ in spans:
        trace = RequestTrace("fast", float(sent))
        trace.add(float(sent + wait), 1)
        traces.append(trace)
    means = mean_by_bin(waiting_over_time(traces), until, num_bins)
    assert len(means) == num_bins
    area = sum(mean for _, mean in means) * until / num_bins
    expected = sum(max(0, min(sent + wait, until) - sent) for sent, wait, _, _ in spans)
    assert area == pytest.approx(expected)
    assert [at_s for at_s, _ in means] == sorted(at_s for at_s, _ in means)


def test_means_by_bin_stand_where_they_belong() -> None:
    counts = [(0.0, 0), (0.5, 2), (2.0, 1)]
    assert mean_by_bin(counts, 4.0, 4) == [(0.5, 1.0), (1.5, 2.0), (2.5, 1.0), (3.5, 1.0)]


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 9)), max_size=20), st.integers(0, 5))
def test_tokens_by_second_equals_counting(arrivals: list[tuple[float, int]], first: int) -> None:
    traces = []
    for at_s, num_tokens in arrivals:
        trace = RequestTrace("fast", 0.0)
        trace.add(at_s, num_tokens)
        traces.append(trace)
    expected = [
        sum(count for at_s, count in arrivals if second <= at_s < second + 1)
        for second in range(first, first + 4)
    ]
    assert tokens_by_second(traces, first, 4) == expected
