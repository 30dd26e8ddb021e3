"""Traces and results of demo runs that never happened."""

from datetime import datetime

from omniserve.demo.clients import Served
from omniserve.demo.measure import Outcome, RequestTrace, Tier, summarise
from omniserve.demo.options import Addresses, DemoOptions
from omniserve.demo.result import DemoResult
from omniserve.demo.traffic import Record, StatusSample

FAST = Tier("fast", "latency_sensitive", ttft_ms=500, tpot_ms=100, percentile=90)
SLOW = Tier("slow", "best_effort")


def make_trace(
    tier: str = "fast",
    sent_s: float = 0.0,
    ttft_s: float = 0.1,
    tpot_s: float = 0.05,
    num_tokens: int = 5,
    outcome: Outcome = "done",
    error: str = "",
) -> RequestTrace:
    """Tokens at even distances; it ends with the last one."""
    trace = RequestTrace(tier, sent_s)
    for index in range(num_tokens):
        trace.add(sent_s + ttft_s + index * tpot_s, 1)
    if outcome != "running":
        trace.end(sent_s + ttft_s + max(0, num_tokens - 1) * tpot_s, outcome, error)
    return trace


def make_result(
    *traces: RequestTrace, window_s: float = 10.0, has_status: bool = True
) -> DemoResult:
    samples = [StatusSample(at_s / 2, at_s << 20, 64 << 20, at_s) for at_s in range(20)]
    return DemoResult(
        options=DemoOptions(duration_s=window_s),
        served=Served("m<1>", "Qwen3ForCausalLM", 1_500_000, "cpu, 2 threads", "0.1", FAST, SLOW),
        addresses=Addresses("127.0.0.1:1", "127.0.0.1:2"),
        record=Record(window_s, traces=list(traces), samples=samples if has_status else []),
        summaries=tuple(summarise(tier, traces, window_s) for tier in (FAST, SLOW)),
        finished_at=datetime(2026, 1, 2, 3, 4),
        num_cores=2,
        ready_after_s=3.21,
        log_path=None,
    )
