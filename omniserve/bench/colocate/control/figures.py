"""What windows of control amount to: figures as elsewhere, and those of each slice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omniserve.bench.colocate.control.loads import Slice
from omniserve.bench.colocate.figures import Cell, Figures, Spread, spread_of
from omniserve.bench.colocate.workload import LS_STREAM
from omniserve.bench.report.summary import is_within
from omniserve.bench.run_record import RunRecord
from omniserve.percentiles import percentile

SLICE_PERCENT = 90
"""The percentile of a slice: of its few requests higher ones are chance."""


@dataclass(frozen=True, slots=True)
class SliceFigures:
    """LS requests that were due in one slice of a window."""

    start_s: float
    end_s: float
    rate: float
    num_ls: int
    num_within: int
    """Both objectives."""
    num_refused: int
    ttft_p90_ms: float | None
    tpot_p90_ms: float | None


def slice_figures(record: RunRecord, slices: Sequence[Slice]) -> tuple[SliceFigures, ...]:
    """Of the slices of the measured part."""
    return tuple(_of_slice(record, each) for each in slices if each.start_s >= 0.0)


def _of_slice(record: RunRecord, part: Slice) -> SliceFigures:
    (info,) = (stream for stream in record.streams if stream.name == LS_STREAM)
    due = [
        request
        for request in record.requests
        if request.stream == LS_STREAM and part.start_s <= request.scheduled_s < part.end_s
    ]
    return SliceFigures(
        part.start_s,
        part.end_s,
        part.rate,
        len(due),
        sum(is_within(info, request) for request in due),
        sum(request.outcome == "rejected" for request in due),
        _percentile_ms([request.ttft_s for request in due]),
        _percentile_ms([request.tpot_s for request in due]),
    )


def _percentile_ms(values_s: Sequence[float | None]) -> float | None:
    return percentile([1e3 * value for value in values_s if value is not None], SLICE_PERCENT)


@dataclass(frozen=True, slots=True)
class ControlCell:
    """All windows of one contender under one load, one a round."""

    cell: Cell
    slices: tuple[tuple[SliceFigures, ...], ...]
    """Of each window."""


Share = Callable[[Figures], float | None]
Weight = Callable[[Figures], int]


def lost_points(own: Cell, base: Cell, share: Share, weight: Weight) -> Spread | None:
    """What `own` has less than `base`, in points: over the requests of all rounds together (as its
    median), and in the rounds with the least and the most."""
    rounds = [
        None if (mine := share(each)) is None or (theirs := share(other)) is None else theirs - mine
        for each, other in zip(own.windows, base.windows, strict=True)
    ]
    spread, mine, theirs = (
        spread_of(rounds),
        pooled(own, share, weight),
        pooled(base, share, weight),
    )
    if spread is None or mine is None or theirs is None:
        return None
    return Spread(100 * (theirs - mine), 100 * spread.low, 100 * spread.high)


def pooled(cell: Cell, share: Share, weight: Weight) -> float | None:
    """A share of the requests of all windows together."""
    parts = [(value, weight(each)) for each in cell.windows if (value := share(each)) is not None]
    total = sum(number for _, number in parts)
    return sum(value * number for value, number in parts) / total if total else None
