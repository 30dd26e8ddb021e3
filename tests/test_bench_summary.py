"""What a run amounts to, against numbers worked out by hand and slower ways to the same ones."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builders import BATCH, CHAT, busy_run, make_request, make_run, make_sample

from omniserve.bench.report.distributions import (
    bin_width_s,
    curve_of,
    num_bins,
    percentile_by_bin,
    rate_by_bin,
    some_of,
)
from omniserve.bench.report.run_summary import ClockMeans, RunSummary, StreamSummary
from omniserve.bench.report.summary import summarise
from omniserve.bench.run_record import Outcome, RequestRecord, ServerClock, StreamInfo
from omniserve.errors import ConfigError, OmniServeError

FREE = StreamInfo("chat", "latency_sensitive", "demo")


def chat_of(*requests: RequestRecord, info: StreamInfo = CHAT) -> StreamSummary:
    record = make_run(*requests)
    record.streams = [info, BATCH]
    return summarise(record).stream("chat")


def test_latencies_worked_out_by_hand() -> None:
    chat = chat_of(
        make_request(at_s=1, ttft_s=0.25, tpot_s=0.125, num_tokens=3),
        make_request(at_s=2, ttft_s=0.5, tpot_s=0.0625, num_tokens=5),
        make_request(at_s=3, ttft_s=0.75, num_tokens=1),
    )
    assert (chat.ttft.num, chat.ttft.mean_ms, chat.ttft.p50_ms) == (3, 500, 500)
    assert chat.ttft.p90_ms == pytest.approx(700)
    assert (chat.ttft.max_ms, chat.tpot.num) == (750, 2)
    assert chat.tpot.mean_ms == pytest.approx(93.75)
    # Two gaps of 125 ms and four of 62.5 ms; a single token has none.
    assert (chat.itl.num, chat.itl.p50_ms, chat.itl.max_ms) == (6, 62.5, 125)
    assert (chat.e2e.num, chat.e2e.p50_ms) == (3, 750)


def test_a_late_generator_does_not_flatter_the_server() -> None:
    chat = chat_of(make_request(at_s=1, ttft_s=0.25, late_s=0.125))
    assert chat.ttft.p50_ms == 250
    assert chat.lateness.max_ms == 125


def test_what_was_never_sent_has_no_lateness() -> None:
    unsent = RequestRecord("chat", 0, 5.0, 1, 1)
    assert chat_of(unsent).lateness.num == 0
    assert chat_of(unsent).num_cut_off == 1


@pytest.mark.parametrize("outcome", ["failed", "rejected", "cut_off"])
def test_who_does_not_finish_meets_no_objective(outcome: Outcome) -> None:
    chat = chat_of(make_request(), make_request(outcome=outcome))
    assert (chat.attainment.ttft, chat.attainment.tpot, chat.attainment.joint) == (0.5, 0.5, 0.5)
    assert chat.goodput_requests_per_s == 1 / 10
    assert chat.goodput_tokens_per_s == 5 / 10
    counts = {"failed": chat.num_failed, "rejected": chat.num_rejected, "cut_off": chat.num_cut_off}
    assert counts[outcome] == 1
    assert (sum(counts.values()), chat.num_done, chat.num_requests) == (1, 1, 2)


def test_objectives_apart_and_together() -> None:
    chat = chat_of(
        make_request(ttft_s=0.5, tpot_s=0.09),
        make_request(ttft_s=0.75, tpot_s=0.09),
        make_request(ttft_s=0.25, tpot_s=0.125),
        make_request(ttft_s=0.75, tpot_s=0.125),
        make_request(ttft_s=0.25, num_tokens=1),
    )
    assert chat.attainment.ttft == pytest.approx(3 / 5), "500 ms is still within 500 ms"
    assert chat.attainment.tpot == pytest.approx(3 / 5), "one token has no time between tokens"
    assert chat.attainment.joint == pytest.approx(2 / 5)


def test_a_request_that_is_done_without_a_token_missed_the_first() -> None:
    assert chat_of(make_request(num_tokens=0)).attainment.ttft == 0


@pytest.mark.parametrize(("ttft_ms", "tpot_ms"), [(500, None), (None, 100)])
def test_one_objective_alone_decides(ttft_ms: float | None, tpot_ms: float | None) -> None:
    info = StreamInfo("chat", "latency_sensitive", "demo", ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    met = chat_of(make_request(), make_request(ttft_s=0.75, tpot_s=0.125), info=info).attainment
    assert met.joint == 0.5
    assert (met.ttft, met.tpot) == ((0.5, None) if ttft_ms else (None, 0.5))


def test_without_objectives_nothing_is_said_of_them() -> None:
    chat = chat_of(make_request(), info=FREE)
    assert (chat.attainment.ttft, chat.attainment.tpot, chat.attainment.joint) == (None,) * 3
    assert chat.goodput_requests_per_s is None
    assert chat.goodput_tokens_per_s is None


def test_requests_count_by_their_time_and_tokens_by_theirs() -> None:
    chat = chat_of(
        make_request(at_s=-1.0, ttft_s=1.5, num_tokens=1, prompt_tokens=100),
        make_request(at_s=-1.0, ttft_s=0.5, num_tokens=1, prompt_tokens=1000),
        make_request(at_s=9.5, ttft_s=0.25, tpot_s=0.125, num_tokens=4, prompt_tokens=30),
        make_request(at_s=10.0, prompt_tokens=5000),
    )
    assert chat.num_requests == 1, "only what is due in [0, 10)"
    assert chat.output_tokens_per_s == (1 + 2) / 10, "the tokens at 10 s and later are too late"
    assert chat.prompt_tokens_per_s == 130 / 10


def test_errors_are_counted_the_most_frequent_first() -> None:
    failed = [
        make_request(outcome="failed", num_tokens=0, error=text) for text in ("b", "a 1", "a 2")
    ]
    assert list(chat_of(*failed).errors.items()) == [("a 1", 2), ("b", 1)]


def test_the_server_speaks_of_the_window_only() -> None:
    samples = [
        make_sample(-1, steps=0, joined=0, used=50),
        make_sample(0, steps=100, joined=1000, used=10),
        make_sample(5, steps=150, joined=1000, used=30),
        make_sample(10, steps=300, joined=3000, used=20),
        make_sample(11, steps=900, joined=9000, used=60),
    ]
    server = summarise(make_run(samples=samples)).server
    assert server is not None
    assert server.steps_per_s == 20
    assert server.num_preemptions == 20
    assert server.lane_rows_per_step == 2000 / 200 / 4
    assert server.piggybacked_tokens_per_s == 50
    assert (server.kv_used_mean_bytes, server.kv_used_max_bytes) == (20, 30)
    assert server.lanes == [(5, 0), (10, 2000 / 150 / 4)]


def test_without_layers_lanes_are_those_of_all_of_them() -> None:
    samples = [make_sample(0), make_sample(1, steps=10, joined=40)]
    server = summarise(make_run(samples=samples, num_layers=None)).server
    assert server is not None
    assert (server.lane_rows_per_step, server.is_per_layer) == (4, False)


def test_a_restarted_engine_is_compared_with_itself() -> None:
    samples = [make_sample(0, 500, 500), make_sample(1, 600, 600), make_sample(2, 10, 8)]
    samples += [make_sample(3, 30, 88)]
    server = summarise(make_run(samples=samples)).server
    assert server is not None
    assert (server.steps_per_s, server.lane_rows_per_step) == (20, 1)


@pytest.mark.parametrize("num_samples", [0, 1])
def test_without_samples_the_server_says_nothing(num_samples: int) -> None:
    samples = [make_sample(1)] * num_samples
    assert summarise(make_run(samples=samples)).server is None


def test_an_idle_server_has_no_lanes() -> None:
    server = summarise(make_run(samples=[make_sample(0, 5), make_sample(1, 5)])).server
    assert server is not None
    assert (server.lane_rows_per_step, server.lanes) == (None, [])


def test_the_clients_clock_is_of_the_servers_requests() -> None:
    record = make_run(
        make_request(at_s=-3, ttft_s=1.25, tpot_s=0.125, num_tokens=3),
        make_request(at_s=-3, ttft_s=1.0, tpot_s=2.5, num_tokens=3),
        *[make_request(at_s=1, ttft_s=0.5, tpot_s=0.25, num_tokens=2, late_s=0.25)] * 2,
        make_request("batch", at_s=5, ttft_s=2.25, num_tokens=1, outcome="cut_off"),
        make_request("batch", at_s=6, num_tokens=0, outcome="failed"),
    )
    record.server_clock = [
        ServerClock("", 4, 1000.0, None, 900.0),
        ServerClock("chat", 3, 500.0, 200.0, 800.0),
    ]
    everything, chat = summarise(record).clocks
    assert (everything.stream, chat.stream) == ("", "chat")
    assert everything.server == ClockMeans(4, 1000, None, 900)
    # The first was over before the window; the second ended in it, but had begun to answer before.
    # Time begins with sending, and only who is done has an end.
    assert everything.client == ClockMeans(3, (250 + 250 + 2250) / 3, 1000, 7000 / 3)
    assert chat.client == ClockMeans(2, 250, 1000, 7000 / 3)


def test_a_run_without_requests_amounts_to_nothing() -> None:
    chat = summarise(make_run()).stream("chat")
    assert (chat.num_requests, chat.ttft.p99_ms, chat.attainment.joint) == (0, None, None)
    assert (chat.output_tokens_per_s, chat.series.ttft_curve) == (0, [])
    with pytest.raises(KeyError):
        summarise(make_run()).stream("nobody")


def test_a_run_without_a_window_has_no_summary() -> None:
    with pytest.raises(OmniServeError, match="run 'a run': it ended while it warmed up"):
        summarise(make_run(make_request(at_s=-1.0), duration_s=0.0))


def test_a_summary_is_the_same_after_a_way_through_json() -> None:
    summary = summarise(busy_run())
    assert RunSummary.from_json(summary.to_json()) == summary


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "title"),
        ("not json", "malformed"),
        ('{"title": 5}', "title"),
    ],
)
def test_what_is_no_summary_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RunSummary.from_json(text)


def test_a_summary_of_another_format_is_refused() -> None:
    text = summarise(make_run()).to_json().replace("summary 1", "summary 2")
    with pytest.raises(ConfigError, match="format"):
        RunSummary.from_json(text)


requests = st.builds(
    make_request,
    at_s=st.floats(-2, 12),
    ttft_s=st.floats(0.001, 2),
    tpot_s=st.floats(0.001, 0.3),
    num_tokens=st.integers(0, 6),
    outcome=st.sampled_from(["done", "failed", "rejected", "cut_off"]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(requests, max_size=12))
def test_numbers_agree_with_counting_one_by_one(those: list[RequestRecord]) -> None:
    chat = chat_of(*those)
    due = [each for each in those if 0 <= each.scheduled_s < 10]
    met = 0
    for each in due:
        times = each.token_times_s
        if each.outcome == "done" and times and times[0] - each.scheduled_s <= 0.5:
            gap_s = (times[-1] - times[0]) / max(1, len(times) - 1)
            met += 1000 * gap_s <= 100
    assert chat.num_requests == len(due)
    if due:
        assert chat.attainment.joint == pytest.approx(met / len(due))
    tokens = [at for each in those for at in each.token_times_s if 0 <= at < 10]
    assert chat.output_tokens_per_s == pytest.approx(len(tokens) / 10)
    assert sum(chat.series.tokens_per_s) == pytest.approx(len(tokens))
    gaps = [b - a for each in due for a, b in pairwise(each.token_times_s)]
    assert chat.itl.num == len(gaps)
    if gaps:
        assert chat.itl.mean_ms == pytest.approx(1000 * statistics.fmean(gaps))
        assert chat.itl.p50_ms == pytest.approx(1000 * statistics.median(gaps))


@given(st.floats(0.5, 1e6))
def test_bins_are_round_and_cover_the_window(duration_s: float) -> None:
    width_s = bin_width_s(duration_s)
    count = num_bins(duration_s, width_s)
    assert 1 <= count <= 40
    assert (count - 1) * width_s < duration_s <= count * width_s * (1 + 1e-9)
    digit = width_s / 10 ** math.floor(math.log10(width_s) + 1e-9)
    assert round(digit) in (1, 2, 5)


def test_a_short_last_bin_has_the_rate_of_its_own_width() -> None:
    at_s = np.array([0.5, 0.6, 2.1, 2.2, 2.6])
    assert rate_by_bin(at_s, 2.5, 1.0) == [2, 0, 4]
    medians = percentile_by_bin(at_s, at_s * 10, 2.5, 1.0, 50)
    assert medians == [pytest.approx(5.5), None, pytest.approx(22)]


def test_curves_begin_at_the_least_and_end_at_the_most() -> None:
    curve = curve_of(np.array([3.0, 1.0, 2.0]))
    assert (curve[0], curve[50], curve[-1]) == ((1, 0), (2, 0.5), (3, 1))
    assert curve == sorted(curve)


def test_few_points_are_all_kept_and_many_are_thinned() -> None:
    few = [(float(at), 0.0) for at in range(600)]
    assert some_of(few) == few
    many = some_of([(float(at), 0.0) for at in range(100_000)])
    assert 500 < len(many) <= 600
    assert some_of([]) == []
