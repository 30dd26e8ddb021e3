"""Windows that something disturbed are measured again."""

import asyncio
from collections.abc import Iterator

import pytest

from omniserve.bench.colocate.undisturbed import OTHERS_CORES, measure_undisturbed
from omniserve.bench.run_record import RequestRecord, RunRecord, StreamInfo


def windows(*others_cores: float) -> Iterator[RunRecord]:
    for cores in others_cores:
        yield RunRecord("a window", "nobody", [], 1.0, [], facts={OTHERS_CORES: cores})


@pytest.mark.parametrize(
    ("others_cores", "kept", "num_measured"),
    [
        ([0.0, 9.0], 0.0, 1),
        ([1.2, 0.1, 0.0], 0.1, 2),
        ([1.2, 0.4, 0.5, 0.0], 0.4, 3),
    ],
)
def test_the_quietest_of_a_few_is_kept(
    others_cores: list[float], kept: float, num_measured: int
) -> None:
    left = windows(*others_cores)
    said: list[str] = []

    async def measure() -> RunRecord:
        return next(left)

    record = asyncio.run(measure_undisturbed(measure, 3, said.append))
    assert record.facts[OTHERS_CORES] == kept
    assert len(list(left)) == len(others_cores) - num_measured
    assert len(said) == sum(cores > 0.15 for cores in others_cores[:num_measured])


def late_window(late_ms: float) -> RunRecord:
    """A chat that is sent so late; one of the warm-up is later still."""
    chat = StreamInfo("LS", "latency_sensitive", "m")
    requests = [
        RequestRecord("LS", 0, -0.5, 8, 8, sent_s=5.0),
        RequestRecord("LS", 1, 0.5, 8, 8, sent_s=0.5 + late_ms / 1e3),
    ]
    return RunRecord("a window", "nobody", [chat], 1.0, requests, facts={OTHERS_CORES: 0.0})


def test_a_window_whose_generator_stood_still_is_measured_again() -> None:
    left = [late_window(5.0), late_window(2500.0)]
    said: list[str] = []

    async def measure() -> RunRecord:
        return left.pop()

    record = asyncio.run(measure_undisturbed(measure, 3, said.append))
    assert record.requests[1].sent_s == 0.505
    assert said == [
        "disturbed: other processes used 0.00 cores meanwhile, a request was sent 2500 ms late"
    ]
