"""Windows that other processes disturbed are measured again."""

import asyncio
from collections.abc import Iterator

import pytest

from omniserve.bench.colocate.undisturbed import OTHERS_CORES, measure_undisturbed
from omniserve.bench.run_record import RunRecord


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
