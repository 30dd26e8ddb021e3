"""The sweep of benchmarks/piggyback.py: every contender, with more and more device KV and LS work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from engine_worker import Worker
from machine import say
from piggyback_bound import Base, DenseTimes
from piggyback_cases import Cell, Load
from piggyback_contenders import (
    DEVICE_ONLY,
    LS_ALONE,
    PIGGYBACKING,
    SECOND_ENGINE,
    Arena,
    ask_together,
)
from piggyback_results import Series

_ROWS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 68, 80)
_DENSE_BUDGET_S = 0.25
_HOST_S = 0.6
_ALONE_PERIODS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    cells: tuple[Cell, ...]
    duties: tuple[float, ...]
    rounds: int
    num_periods: int
    """Of a window."""


@dataclass(slots=True)
class CellResult:
    """One cell: contenders' windows by duty."""

    cell: Cell
    series: dict[tuple[str, float], Series] = field(default_factory=dict)

    def of(self, contender: str, duty: float) -> Series | None:
        """None where it was not measured."""
        return self.series.get((contender, duty))


def measure_cell(arena: Arena, plan: Plan, cell: Cell) -> CellResult:
    """Windows of all contenders in turn, round after round."""
    result = CellResult(cell)
    contenders = _contenders_of(arena, cell)
    arena.open(cell, [name for name in contenders if name != LS_ALONE])
    turns = [
        (name, duty) for duty in plan.duties for name in contenders if _is_measured(name, duty)
    ]
    for index in range(plan.rounds):
        # Who goes first alternates: it finds the machine as the other left it.
        for name, duty in turns if index % 2 == 0 else turns[::-1]:
            window = arena.window(name, duty, plan.num_periods)
            result.series.setdefault((name, duty), Series()).windows.append(window)
    arena.end([name for name in contenders if name != LS_ALONE])
    return result


def _contenders_of(arena: Arena, cell: Cell) -> list[str]:
    """Without a second engine where nothing is left for it."""
    overflows = cell.num_resident(arena.load) < arena.load.be_requests
    return [name for name in arena.contenders if name != SECOND_ENGINE or overflows]


def _is_measured(contender: str, duty: float) -> bool:
    """The second engine does the same at any duty; LS alone does nothing without any."""
    if contender == SECOND_ENGINE:
        return duty == 1.0
    return contender != LS_ALONE or duty > 0


def sweep(arena: Arena, plan: Plan) -> list[CellResult]:
    results = []
    for cell in plan.cells:
        say(f"{arena.frame.name}: context {cell.context}, device KV for {cell.kv_name}")
        results.append(measure_cell(arena, plan, cell))
    return results


def measure_base(
    arena: Arena, probes: Worker, contexts: Sequence[int], num_layers: int, kv_bytes: int
) -> Base:
    """What bounds are computed from; `kv_bytes` are those of a token."""
    say(f"{arena.frame.name}: dense rows, host bandwidth, prefill")
    answer = probes.ask({"kind": "dense", "rows": _ROWS, "budget_s": _DENSE_BUDGET_S})
    times = DenseTimes(dict(zip(_ROWS, answer["seconds"], strict=True)))
    base = Base(num_layers, kv_bytes, times)
    measure_prefill(arena, base, contexts)
    alone_s, beside_s = [], []
    for context in contexts:
        probes.ask({"kind": "open_host", "context": context})
        alone_s.append(_ls_step_s(arena))
        idle = probes.ask({"kind": "host", "seconds": _HOST_S})["bytes_per_s"]
        window, host = ask_together(
            [arena.worker(LS_ALONE), probes],
            [arena.window_command(1.0, _ALONE_PERIODS), {"kind": "host", "seconds": _HOST_S}],
        )
        base.host_bytes_per_s[context] = idle, host["bytes_per_s"]
        beside_s.append(median(window["ls_gaps_s"]))
        probes.ask({"kind": "close_host"})
    base.ls_step_s = median(alone_s), median(beside_s)
    return base


def _ls_step_s(arena: Arena) -> float:
    return median(arena.window(LS_ALONE, 1.0, _ALONE_PERIODS).ls_gaps_s)


def measure_prefill(arena: Arena, base: Base, contexts: Sequence[int]) -> None:
    for context in contexts:
        alone_s = arena.prefill(context, beside_ls=False, count=2)
        beside_s = arena.prefill(context, beside_ls=True, count=1)
        base.prefill_s[context] = median(alone_s), median(beside_s)
