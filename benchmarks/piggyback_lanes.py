"""What benchmarks/piggyback.py asks of the lanes alone: how many requests, rows, binding points."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from machine import say
from piggyback_cases import Cell, Piggybacking
from piggyback_contenders import LS_ALONE, PIGGYBACKING, Arena
from piggyback_results import Series

SHORT_CONTEXT = 128
"""At which a host has far more rows ready than a step takes."""
_REQUESTS_PER_ROW = 10
"""Offloaded requests for each lane row, so that rows are always ready."""


@dataclass(slots=True)
class LaneCase:
    """Windows of one setting, with latency-sensitive work all the time and with none."""

    label: str
    context: int
    num_requests: int
    piggybacking: Piggybacking
    series: dict[float, Series] = field(default_factory=dict)
    """By duty."""

    @property
    def cell(self) -> Cell:
        """Nobody stays on the device."""
        return Cell(self.context, 0)

    def note(self, arena: Arena, duties: Sequence[float], num_periods: int) -> None:
        for duty in duties:
            window = arena.window(PIGGYBACKING, duty, num_periods)
            self.series.setdefault(duty, Series()).windows.append(window)


def all_offloaded(arena: Arena, **changes: int) -> Piggybacking:
    """Every best-effort decode is on the host, wherever it would be faster."""
    return replace(arena.piggybacking, max_resident_decodes=0, when="always", **changes)


def measure_scaling(
    arena: Arena, context: int, counts: Sequence[int], rounds: int, num_periods: int
) -> list[LaneCase]:
    """More and more offloaded requests in one engine; those beyond its pool wait."""
    say(f"{arena.frame.name}: {', '.join(map(str, counts))} offloaded requests of {context}")
    piggybacking = all_offloaded(arena, max_offloaded_requests=max(counts))
    cases = [LaneCase(str(count), context, count, piggybacking) for count in counts]
    arena.open(cases[0].cell, [PIGGYBACKING], piggybacking, counts[0])
    for case in cases:
        arena.fill(PIGGYBACKING, case.num_requests)
        for _ in range(rounds):
            case.note(arena, (1.0, 0.0), num_periods)
    arena.end([PIGGYBACKING])
    return cases


def measure_frontier(
    arena: Arena, cell: Cell, caps: Sequence[int], rounds: int, num_periods: int
) -> list[LaneCase]:
    """Lane rows allowed beside latency-sensitive ones, from few to many."""
    cases = []
    for cap in caps:
        say(f"{arena.frame.name}: context {cell.context}, {cap} lane rows beside LS")
        piggybacking = replace(
            arena.piggybacking, max_resident_decodes=cell.kv_left, max_lane_rows_beside_ls=cap
        )
        case = LaneCase(str(cap), cell.context, arena.load.be_requests, piggybacking)
        arena.open(cell, [PIGGYBACKING], piggybacking)
        for _ in range(rounds):
            case.note(arena, (1.0,), num_periods)
        arena.end([PIGGYBACKING])
        cases.append(case)
    return cases


def measure_binding(
    arena: Arena, context: int, points: Sequence[int], rounds: int, num_periods: int
) -> list[LaneCase]:
    """Engines with different numbers of binding points, one after the other in every round."""
    count = arena.load.be_requests
    cases = [
        LaneCase(str(number), context, count, all_offloaded(arena, binding_points=number))
        for number in points
    ]
    for index in range(rounds):
        say(f"{arena.frame.name}: binding points {points}, round {index + 1}")
        for case in cases if index % 2 == 0 else cases[::-1]:
            arena.open(case.cell, [PIGGYBACKING], case.piggybacking)
            case.note(arena, (1.0, 0.0), num_periods)
            arena.end([PIGGYBACKING])
    return cases


@dataclass(slots=True)
class LaneOverhead:
    """Steps with lane rows, and LS alone in the same rounds."""

    cases: list[LaneCase]
    ls_alone: list[Series]
    """One for each case."""


def measure_overhead(
    arena: Arena, widths: Sequence[int], rounds: int, num_periods: int
) -> LaneOverhead:
    """Steps of latency-sensitive rows with so many lane rows at every layer."""
    overhead = LaneOverhead([], [])
    for width in widths:
        say(f"{arena.frame.name}: steps with {width} lane rows")
        count = _REQUESTS_PER_ROW * max(1, width)
        piggybacking = all_offloaded(
            arena, max_offloaded_requests=count, max_lane_rows_beside_ls=width
        )
        case, alone = LaneCase(str(width), SHORT_CONTEXT, count, piggybacking), Series()
        arena.open(case.cell, [PIGGYBACKING], piggybacking, count)
        for _ in range(rounds):
            alone.windows.append(arena.window(LS_ALONE, 1.0, num_periods))
            case.note(arena, (1.0,), num_periods)
        arena.end([PIGGYBACKING])
        overhead.cases.append(case)
        overhead.ls_alone.append(alone)
    return overhead
