"""What a host that hardly runs does to latency-sensitive work: nothing, it should turn out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from machine import say
from piggyback_cases import Cell
from piggyback_contenders import LS_ALONE, PIGGYBACKING, Arena
from piggyback_report import table
from piggyback_results import Series, percentile

HOST_SHARE = 0.02
"""Of the time that the slowed host may run: 50 times slower."""


@dataclass(slots=True)
class SlowHost:
    """Windows with latency-sensitive work all the time, all three in every round."""

    ls_alone: Series = field(default_factory=Series)
    full_speed: Series = field(default_factory=Series)
    slowed: Series = field(default_factory=Series)


def measure_slow_host(arena: Arena, context: int, rounds: int, num_periods: int) -> SlowHost:
    result = SlowHost()
    arena.open(Cell(context, 0), [PIGGYBACKING])
    for index in range(rounds):
        say(f"{arena.frame.name}: host slowed {1 / HOST_SHARE:.0f} times, round {index + 1}")
        result.ls_alone.windows.append(arena.window(LS_ALONE, 1.0, num_periods))
        result.full_speed.windows.append(arena.window(PIGGYBACKING, 1.0, num_periods))
        slowed = arena.window(PIGGYBACKING, 1.0, num_periods, host_share=HOST_SHARE)
        result.slowed.windows.append(slowed)
    arena.end([PIGGYBACKING])
    return result


def slow_host_table(result: SlowHost) -> str:
    rows = [
        _row("LS alone", result.ls_alone),
        _row("piggybacking, host at full speed", result.full_speed),
        _row(f"piggybacking, host {1 / HOST_SHARE:.0f} times slower", result.slowed),
    ]
    header = ["", "LS TPOT p50, ms", "min..max of windows", "LS TPOT p99, ms", "min..max"]
    return table([*header, "BE tok/s"], rows)


def _row(label: str, series: Series) -> Sequence[str]:
    cells = [label]
    for percent in (50, 99):
        windows = [percentile(window.ls_gaps_s, percent) or 0.0 for window in series.windows]
        cells.append(f"{(series.tpot_s(percent) or 0.0) * 1e3:.2f}")
        cells.append(f"{min(windows) * 1e3:.2f}..{max(windows) * 1e3:.2f}")
    return [*cells, f"{series.be_per_s:,.0f}"]
