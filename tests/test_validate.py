"""Simulated and real figures side by side."""

import pytest

from omniserve.bench.report.summary import summarise
from omniserve.bench.run_record import RequestRecord, RunRecord, StreamInfo
from omniserve.simulate.validation.validate import Comparison, compare


def run(ttft_s: float, tpot_s: float, num_requests: int = 10) -> RunRecord:
    """A second apart, five tokens each."""
    requests = []
    for index in range(num_requests):
        first_s = index + ttft_s
        times_s = [first_s + place * tpot_s for place in range(5)]
        request = RequestRecord("chat", index, float(index), 64, 5, float(index), times_s)
        request.outcome, request.ended_s = "done", times_s[-1]
        requests.append(request)
    info = StreamInfo("chat", "latency_sensitive", "m")
    return RunRecord("", "", [info], duration_s=float(num_requests), requests=requests)


def compared(reals: list[RunRecord], simulated: RunRecord) -> dict[str, Comparison]:
    comparisons = compare([summarise(real) for real in reals], summarise(simulated))
    assert {each.stream for each in comparisons} == {"chat"}
    return {each.figure: each for each in comparisons}


def test_errors_are_relative_to_what_is_real() -> None:
    found = compared([run(ttft_s=0.1, tpot_s=0.01)], run(ttft_s=0.13, tpot_s=0.009))
    assert found["TTFT p50 ms"].error == pytest.approx(0.3)
    assert found["TPOT p99 ms"].error == pytest.approx(-0.1)
    assert found["tokens/s"].error == pytest.approx(0.0)


def test_medians_are_held_to_less_than_tails() -> None:
    found = compared([run(0.1, 0.01)], run(0.13, 0.01))
    assert not found["TTFT p50 ms"].is_met
    assert found["TTFT p99 ms"].is_met
    too_far = compared([run(0.1, 0.01)], run(0.14, 0.01))
    assert not too_far["TTFT p99 ms"].is_met


def test_of_several_real_runs_the_median_counts() -> None:
    found = compared([run(0.1, 0.01), run(0.9, 0.01), run(0.2, 0.01)], run(0.2, 0.01))
    assert found["TTFT p50 ms"].real == pytest.approx(200.0)
    assert found["TTFT p50 ms"].error == pytest.approx(0.0)


def test_what_only_one_run_has_is_not_met() -> None:
    nothing, something = run(0.1, 0.01, 0), run(0.1, 0.01)
    nothing.duration_s = something.duration_s
    assert compared([something], nothing)["TTFT p50 ms"].is_met is False
    assert compared([nothing], nothing)["TTFT p50 ms"].is_met is None
