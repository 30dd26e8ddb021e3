"""Holds a simulated run to a real one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from omniserve.bench.report.run_summary import RunSummary, StreamSummary

MEDIAN_BAR = 0.20
TAIL_BAR = 0.35
"""Relative errors of medians and of 99th percentiles that a simulation is held to."""

Kind = Literal["median", "tail", "rate"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one stream."""

    stream: str
    figure: str
    kind: Kind
    reals: tuple[float, ...]
    """One of each real run that has it."""
    simulated: float | None

    @property
    def real(self) -> float | None:
        """The median of the real runs."""
        return median(self.reals) if self.reals else None

    @property
    def error(self) -> float | None:
        """Of the simulated figure, relative; None where one of both is not there."""
        if self.real is None or self.simulated is None or self.real == 0.0:
            return None
        return self.simulated / self.real - 1.0

    @property
    def bar(self) -> float:
        return TAIL_BAR if self.kind == "tail" else MEDIAN_BAR

    @property
    def is_met(self) -> bool | None:
        """Whether the error is within its bar; None where neither run has the figure."""
        if self.real is None and self.simulated is None:
            return None
        if self.error is None:
            return self.real == self.simulated
        return abs(self.error) <= self.bar


def compare(reals: Sequence[RunSummary], simulated: RunSummary) -> list[Comparison]:
    """Every figure of every stream; all runs are of the same streams, of several real ones the
    median counts."""
    return [
        comparison
        for stream in simulated.streams
        for comparison in _compare_streams(
            [real.stream(stream.info.name) for real in reals], stream
        )
    ]


def _compare_streams(
    reals: Sequence[StreamSummary], simulated: StreamSummary
) -> Iterator[Comparison]:
    name = simulated.info.name
    figures: tuple[tuple[str, Kind, Callable[[StreamSummary], float | None]], ...] = (
        ("TTFT p50 ms", "median", lambda stream: stream.ttft.p50_ms),
        ("TTFT p99 ms", "tail", lambda stream: stream.ttft.p99_ms),
        ("TPOT p50 ms", "median", lambda stream: stream.tpot.p50_ms),
        ("TPOT p99 ms", "tail", lambda stream: stream.tpot.p99_ms),
        ("tokens/s", "rate", lambda stream: stream.output_tokens_per_s),
    )
    for figure, kind, read in figures:
        values = tuple(value for real in reals if (value := read(real)) is not None)
        yield Comparison(name, figure, kind, values, read(simulated))
