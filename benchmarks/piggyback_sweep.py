"""The sweep of benchmarks/piggyback.py: all contenders, ever more device KV and LS work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from engine_worker import Worker
from machine import say
from piggyback_bound import Base, DenseTimes, PrefillTime
from piggyback_cases import Cell
from piggyback_contenders import (
    DEVICE_ONLY,
    LS_ALONE,
    PERIOD_S,
    PIGGYBACKING,
    SECOND_ENGINE,
    Arena,
)
from piggyback_results import Answer, Series, Window, percentile

FULL_DUTY = 1.0
_ROWS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 68, 80)
_DENSE_BUDGET_S = 0.25
_ALONE_PERIODS = 3
_HOST_S = PERIOD_S * (_ALONE_PERIODS + 1)
"""As long as a window of LS alone takes with its beginning."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    cells: tuple[Cell, ...]
    duties: tuple[float, ...]
    rounds: int
    num_periods: int
    """Of a window."""
    goals: dict[int, float]
    """Times device only that piggybacking should reach, by device KV."""
    goal_rounds: int
    """More rounds where a goal is set, with latency-sensitive work all the time."""


@dataclass(slots=True)
class CellResult:
    """One cell."""

    cell: Cell
    series: dict[str, dict[float, Series]] = field(default_factory=dict)
    """By contender and duty."""

    @property
    def duties(self) -> list[float]:
        return sorted({duty for by_duty in self.series.values() for duty in by_duty})

    def of(self, contender: str, duty: float) -> Series | None:
        """None where it was not measured."""
        return self.series.get(contender, {}).get(duty)

    def ls_alone(self, duty: float) -> Series | None:
        """What TPOT at that duty is held to; None without latency-sensitive work."""
        return self.of(LS_ALONE, FULL_DUTY) if duty else None

    def note(self, contender: str, duty: float, window: Window) -> None:
        self.series.setdefault(contender, {}).setdefault(duty, Series()).windows.append(window)


def measure_cell(arena: Arena, plan: Plan, cell: Cell) -> CellResult:
    """Windows of all contenders in turn, round after round."""
    result = CellResult(cell)
    contenders = _contenders_of(arena, cell)
    arena.open(cell, [name for name in contenders if name != LS_ALONE])
    turns = [
        (name, duty)
        for duty in plan.duties
        for name in contenders
        if _is_measured(cell, name, duty)
    ]
    _measure_turns(arena, plan, result, turns, plan.rounds)
    if cell.context == plan.cells[0].context and cell.kv_left in plan.goals:
        full = [(name, duty) for name, duty in turns if duty == FULL_DUTY and name != SECOND_ENGINE]
        _measure_turns(arena, plan, result, full, plan.goal_rounds)
    arena.end([name for name in contenders if name != LS_ALONE])
    return result


def _measure_turns(
    arena: Arena,
    plan: Plan,
    result: CellResult,
    turns: Sequence[tuple[str, float]],
    num_rounds: int,
) -> None:
    for index in range(num_rounds):
        # Who goes first alternates: it finds the machine as the other left it.
        for name, duty in turns if index % 2 == 0 else turns[::-1]:
            result.note(name, duty, arena.window(name, duty, plan.num_periods))


def _contenders_of(arena: Arena, cell: Cell) -> list[str]:
    """Without a second engine where nothing is left for it."""
    overflows = cell.num_resident(arena.load) < arena.load.be_requests
    return [name for name in arena.contenders if name != SECOND_ENGINE or overflows]


def _is_measured(cell: Cell, contender: str, duty: float) -> bool:
    """Not a device without room for anybody, and some contenders at full duty only."""
    if contender == DEVICE_ONLY:
        return cell.kv_left != 0
    return contender == PIGGYBACKING or duty == FULL_DUTY


def sweep(arena: Arena, plan: Plan) -> list[CellResult]:
    results = []
    for cell in plan.cells:
        say(f"{arena.frame.name}: context {cell.context}, device KV for {cell.kv_name}")
        results.append(measure_cell(arena, plan, cell))
    return results


def measure_prefill(arena: Arena, contexts: Sequence[int]) -> dict[int, PrefillTime]:
    """By context."""
    say(f"{arena.frame.name}: prefill")
    return {
        context: _prefill_time(
            arena.prefill(context, beside_ls=False), arena.prefill(context, beside_ls=True)
        )
        for context in contexts
    }


def _prefill_time(alone: Answer, beside_ls: Answer) -> PrefillTime:
    last_s = percentile(beside_ls["ls_gaps_s"], 99)
    return PrefillTime(alone["seconds"], beside_ls["seconds"], last_s or 0.0)


def measure_base(
    arena: Arena, probes: Worker, contexts: Sequence[int], num_layers: int, token_bytes: int
) -> Base:
    """What bounds are computed from; `token_bytes`: of the keys and values of a token."""
    say(f"{arena.frame.name}: dense rows, host bandwidth")
    answer = probes.ask({"kind": "dense", "rows": _ROWS, "budget_s": _DENSE_BUDGET_S})
    times = DenseTimes(dict(zip(_ROWS, answer["seconds"], strict=True)))
    base = Base(num_layers, token_bytes, times)
    alone_s, beside_s = [], []
    for context in contexts:
        probes.ask({"kind": "open_host", "context": context})
        idle = probes.ask({"kind": "host", "seconds": _HOST_S})
        alone_s.append(median(arena.window(LS_ALONE, 1.0, _ALONE_PERIODS).ls_gaps_s))
        window, host = arena.window_beside(
            probes, {"kind": "host", "seconds": _HOST_S}, LS_ALONE, 1.0, _ALONE_PERIODS
        )
        base.host_bytes_per_s[context] = idle["bytes_per_s"], host["bytes_per_s"]
        beside_s.append(median(window.ls_gaps_s))
        probes.ask({"kind": "close_host"})
    base.ls_step_s = median(alone_s), median(beside_s)
    return base
