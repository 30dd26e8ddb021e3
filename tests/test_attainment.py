"""The share of requests that met their objectives lately, as a scraper sees it."""

import pytest
from service_builders import make_output, sample

from omniserve.attainment import Attainment
from omniserve.errors import EngineError, OmniServeError, RequestCancelled
from omniserve.metrics import Metrics
from omniserve.promise import Verdict
from omniserve.request_record import RequestRecord
from omniserve.requests import EngineRequest, SamplingParams
from scheduler import Objectives

MET, MISSED = Verdict(ttft=True, tpot=True), Verdict(ttft=True, tpot=False)
CHAT = EngineRequest(
    "r#0", "demo", (1, 2), SamplingParams(), "latency_sensitive", "chat", Objectives(1.0, 0.1)
)
BATCH = EngineRequest("r#0", "demo", (1, 2), SamplingParams(), "best_effort", "batch")


class ManualClock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics(clock: ManualClock) -> Metrics:
    return Metrics(clock)


def test_shares_are_of_the_requests_of_a_tier(clock: ManualClock) -> None:
    attainment = Attainment(clock)
    assert attainment.shares() == {}
    for verdict in (MET, MET, MET, MISSED):
        attainment.note("demo", "chat", verdict)
    attainment.note("demo", "voice", Verdict(ttft=False, tpot=False))
    assert attainment.shares() == {
        ("demo", "chat", "ttft"): 1.0,
        ("demo", "chat", "tpot"): 0.75,
        ("demo", "chat", "both"): 0.75,
        ("demo", "voice", "ttft"): 0.0,
        ("demo", "voice", "tpot"): 0.0,
        ("demo", "voice", "both"): 0.0,
    }


def test_what_is_five_minutes_old_is_forgotten(clock: ManualClock) -> None:
    attainment = Attainment(clock)
    attainment.note("demo", "chat", MISSED)
    clock.now_s += 200
    attainment.note("demo", "chat", MET)
    assert attainment.shares()["demo", "chat", "both"] == 0.5
    clock.now_s += 100
    assert attainment.shares()["demo", "chat", "both"] == 1.0
    clock.now_s += 200
    assert attainment.shares() == {}


def test_memory_does_not_grow_with_requests(clock: ManualClock) -> None:
    attainment = Attainment(clock)
    for _ in range(20_000):
        attainment.note("demo", "chat", MET)
        clock.now_s += 0.1
    assert len(attainment._slices) <= 61
    assert attainment.shares()["demo", "chat", "both"] == 1.0


def run_one(
    metrics: Metrics,
    clock: ManualClock,
    sequence: EngineRequest,
    pause_s: float,
    error: OmniServeError | None = None,
) -> None:
    """Three tokens, each after the same pause."""
    record = RequestRecord(metrics, "r", ("prompt",), clock(), clock)
    record.model, record.tier = "demo", sequence.tier
    record.start((2,), 1)
    record.hold_to(sequence)
    for place in range(3):
        clock.now_s += pause_s
        record.on_output(0, make_output(sequence, place, 3))
    record.end(error)


def chat(metrics: Metrics, name: str, **labels: str) -> float:
    labels = {"model": "demo", "tier": "chat"} | labels
    return sample(metrics, name, (f'{key}="{text}"' for key, text in labels.items()))


def test_requests_that_end_are_judged(metrics: Metrics, clock: ManualClock) -> None:
    metrics.expect(["demo"], ["chat", "batch"])
    run_one(metrics, clock, CHAT, 0.05)
    run_one(metrics, clock, CHAT, 0.2)
    assert chat(metrics, "omniserve_slo_attainment", objective="ttft") == 1.0
    assert chat(metrics, "omniserve_slo_attainment", objective="tpot") == 0.5
    assert chat(metrics, "omniserve_slo_attainment", objective="both") == 0.5
    assert chat(metrics, "omniserve_goodput_tokens_total") == 3
    # Its engine failed: that is a miss. Its client went away: that is nothing.
    run_one(metrics, clock, CHAT, 0.05, EngineError("x"))
    run_one(metrics, clock, CHAT, 0.05, RequestCancelled("x"))
    assert chat(metrics, "omniserve_slo_attainment", objective="both") == pytest.approx(1 / 3)
    assert chat(metrics, "omniserve_goodput_tokens_total") == 3


def test_best_effort_tokens_are_goodput_without_attainment(
    metrics: Metrics, clock: ManualClock
) -> None:
    metrics.expect(["demo"], ["chat", "batch"])
    run_one(metrics, clock, BATCH, 60.0)
    assert chat(metrics, "omniserve_goodput_tokens_total", tier="batch") == 3
    assert chat(metrics, "omniserve_goodput_tokens_total") == 0
    assert b"omniserve_slo_attainment{" not in metrics.exposition()
