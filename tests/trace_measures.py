"""Measures of traces, by their definitions."""

import itertools
import statistics

from omniserve.bench.trace.trace import Trace


def cv(times_s: list[float]) -> float:
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(times_s)]
    return statistics.pstdev(gaps_s) / statistics.fmean(gaps_s)


def times(trace: Trace) -> list[float]:
    return [request.arrival_s for request in trace]
