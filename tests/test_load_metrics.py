"""The server's own clock, from its metrics."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from omniserve.bench.load.metrics_text import read_clock
from omniserve.bench.load.server_clock import server_clocks
from omniserve.bench.load.target import (
    ClockKey,
    ClockReading,
    Latencies,
    ModelInfo,
    TargetInfo,
    TierInfo,
)
from omniserve.bench.run_record import ServerClock, StreamInfo
from omniserve.metrics import Metrics

ODD_NAME = 'a "model", {odd} \\ one'
INFO = TargetInfo(
    "OmniServe",
    "1",
    "cpu",
    (ModelInfo("demo", 10, 10, "interactive"),),
    (TierInfo("interactive", "latency_sensitive"), TierInfo("batch", "best_effort")),
)
CHAT = StreamInfo("chat", "latency_sensitive", "demo")
BATCH = StreamInfo("batch", "best_effort", "demo", "flex", is_open_loop=False)


def test_what_omniserve_exposes_is_read() -> None:
    metrics = Metrics()
    for seconds in (0.25, 0.5):
        metrics.ttft.labels("demo", "interactive").observe(seconds)
    metrics.tpot.labels("demo", "interactive").observe(0.125)
    metrics.e2e.labels("demo", "batch").observe(8)
    clock = read_clock(metrics.exposition().decode())
    assert clock == {
        ClockKey("demo", "interactive"): ClockReading(Latencies(2, 0.75), Latencies(1, 0.125)),
        ClockKey("demo", "batch"): ClockReading(e2e=Latencies(1, 8)),
    }


def test_what_vllm_exposes_is_read_and_engines_are_added_up() -> None:
    registry = CollectorRegistry()
    labels = ("model_name", "engine")
    for name in ("time_to_first_token_seconds", "request_time_per_output_token_seconds"):
        histogram = Histogram(f"vllm:{name}", "-", labels, registry=registry, buckets=(1.0,))
        histogram.labels(ODD_NAME, "0").observe(0.5)
        histogram.labels(ODD_NAME, "1").observe(2.0)
    clock = read_clock(generate_latest(registry).decode())
    ((key, reading),) = clock.items()
    assert key.model.startswith("a ")
    assert key.tier == ""
    assert reading == ClockReading(Latencies(2, 2.5), Latencies(2, 2.5), Latencies())


def test_other_metrics_are_passed_over() -> None:
    assert (
        read_clock("# HELP x y\nprocess_cpu_seconds_total 3\n\nomniserve_ttft_seconds_sum{") == {}
    )


def test_what_was_there_before_the_run_is_taken_off() -> None:
    ls, be = ClockKey("demo", "interactive"), ClockKey("demo", "batch")
    before = {ls: ClockReading(Latencies(10, 5.0), Latencies(8, 4.0), Latencies(8, 40.0))}
    after = {
        ls: ClockReading(Latencies(14, 6.0), Latencies(8, 4.0), Latencies(12, 42.0)),
        be: ClockReading(Latencies(4, 3.0)),
        ClockKey("another", "batch"): ClockReading(Latencies(99, 99.0)),
    }
    assert server_clocks(INFO, [CHAT, BATCH], before, after) == [
        ServerClock("chat", 4, 250, None, 500),
        ServerClock("batch", 4, 750, None, None),
        ServerClock("", 8, 500, None, 500),
    ]


def test_streams_that_the_server_cannot_tell_apart_are_told_together() -> None:
    key = ClockKey("demo", "")
    after = {key: ClockReading(Latencies(4, 1.0))}
    vllm = TargetInfo("vLLM", "1", "", INFO.models)
    assert server_clocks(vllm, [CHAT, BATCH], {}, after) == [ServerClock("", 4, 250, None, None)]
    assert [clock.stream for clock in server_clocks(vllm, [CHAT], {}, after)] == ["chat", ""]


def test_a_server_without_metrics_has_no_clock() -> None:
    assert server_clocks(INFO, [CHAT], {}, {}) == []
