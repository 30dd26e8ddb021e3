"""Objectives that every contender is held to: twice what the slowest system needs unloaded."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from omniserve.bench.run_record import RunRecord
from omniserve.errors import OmniServeError

FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Medians of requests that were alone with a server."""

    ttft_ms: float
    tpot_ms: float
    num_requests: int


@dataclass(frozen=True, slots=True)
class Objectives:
    """The same numbers for every system."""

    ttft_ms: float
    tpot_ms: float


def unloaded_of(record: RunRecord) -> Unloaded:
    """Of requests within the measured part. Raises OmniServeError where none was answered."""
    requests = [request for request in record.requests if request.scheduled_s >= 0]
    ttfts = [request.ttft_s for request in requests if request.ttft_s is not None]
    tpots = [request.tpot_s for request in requests if request.tpot_s is not None]
    if not ttfts or not tpots:
        errors = sorted({request.error for request in requests if request.error})
        raise OmniServeError(f"{record.title}: nothing was answered: {'; '.join(errors)}")
    return Unloaded(statistics.median(ttfts) * 1e3, statistics.median(tpots) * 1e3, len(requests))


def objectives_of(unloaded: Mapping[str, Unloaded]) -> Objectives:
    """Of the slowest system in each, so that every system could meet them."""
    return Objectives(
        FACTOR * max(each.ttft_ms for each in unloaded.values()),
        FACTOR * max(each.tpot_ms for each in unloaded.values()),
    )
