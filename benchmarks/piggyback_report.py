"""Markdown of benchmarks/piggyback.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from piggyback_bound import ENOUGH, Base, Bound, PrefillTime, bound_of, with_prefill
from piggyback_cases import Cell, Frame, Load
from piggyback_contenders import DEVICE_ONLY, LS_ALONE, PIGGYBACKING, SECOND_ENGINE
from piggyback_results import Series, paired_ratios, paired_tpot_ratios
from piggyback_sweep import FULL_DUTY, CellResult

CONTENDERS = (LS_ALONE, DEVICE_ONLY, PIGGYBACKING, SECOND_ENGINE)
_HEADER = (
    "context",
    "device KV for",
    "LS duty",
    "contender",
    "BE tok/s",
    "min..max",
    "x device only",
    "with prefill",
    "x device only",
    "LS TPOT p50 / p99 ms",
    "p99 x LS alone",
    "offloaded",
    "hop steps",
    "host GB/s",
    "bound tok/s",
    "of the bound",
    "other load",
)


@dataclass(slots=True)
class FrameResult:
    """All cells of one frame."""

    frame: Frame
    load: Load
    ls_limit: float
    """How many times that of LS alone a TPOT may be; what the bound allows."""
    prefill: dict[int, PrefillTime] = field(default_factory=dict)
    """By context."""
    base: Base | None = None
    """None where no bounds are computed."""
    cells: list[CellResult] = field(default_factory=list)

    def bound(self, result: CellResult, duty: float) -> Bound | None:
        """Of the tokens that came out of the lanes; None where there were no lanes."""
        piggybacking = result.of(PIGGYBACKING, duty)
        if self.base is None or piggybacking is None or not piggybacking.hop_steps:
            return None
        alone, beside = self._ls_steps(result, duty)
        return bound_of(
            self.base,
            self.load,
            result.cell,
            duty,
            piggybacking,
            alone,
            beside,
            self.ls_limit,
        )

    def _ls_steps(self, result: CellResult, duty: float) -> tuple[float, float]:
        """Median TPOT of LS alone, and beside those who stay on the device; 0 without LS work."""
        alone, device = result.ls_alone(duty), result.of(DEVICE_ONLY, duty)
        if alone is None:
            return 0.0, 0.0
        return alone.tpot_s(50) or 0.0, (device or alone).tpot_s(50) or 0.0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def sweep_table(result: FrameResult) -> str:
    """A row for every contender under every load."""
    rows = [
        _row(result, cell, duty, contender, series)
        for cell in result.cells
        for duty in cell.duties
        for contender in CONTENDERS
        if (series := cell.of(contender, duty)) is not None
    ]
    return table(_HEADER, rows)


def _row(
    result: FrameResult, cell: CellResult, duty: float, contender: str, series: Series
) -> list[str]:
    device, alone = cell.of(DEVICE_ONLY, duty), cell.ls_alone(duty)
    low, high = series.be_range
    counted = prefilled(result, cell.cell, duty, series)
    device_counted = prefilled(result, cell.cell, duty, device) if device is not None else 0.0
    cells = [f"{cell.cell.context:,}", cell.cell.kv_name, f"{duty:.0%}", contender]
    cells += [f"{series.be_per_s:,.0f}", f"{low:,.0f}..{high:,.0f}"]
    cells += [_times(median(paired_ratios(series, device) or [0.0])) if device else "-"]
    cells += [f"{counted:,.0f}", _times(counted / device_counted if device_counted else 0.0)]
    cells += [*_tpot_cells(series, alone), *_lane_cells(result, cell, duty, contender, series)]
    return [*cells, f"{max(window.other_cores for window in series.windows):.2f} cores"]


def prefilled(result: FrameResult, cell: Cell, duty: float, series: Series) -> float:
    """Best-effort tokens a second where the time of every prompt is counted as well."""
    prefill, output = result.prefill[cell.context], result.load.be_output
    device = median(window.be_tokens / window.seconds for window in series.windows)
    overflow = median(window.overflow_be_per_s for window in series.windows)
    return with_prefill(device, prefill.at(duty), output) + with_prefill(
        overflow, prefill.alone_s, output
    )


def _tpot_cells(series: Series, alone: Series | None) -> list[str]:
    middle, last = series.tpot_s(50), series.tpot_s(99)
    if middle is None or last is None or alone is None:
        return ["-", "-"]
    base = alone.tpot_s(99)
    return [f"{middle * 1e3:.1f} / {last * 1e3:.1f}", f"{last / base:.2f}" if base else "-"]


def _lane_cells(
    result: FrameResult, cell: CellResult, duty: float, contender: str, series: Series
) -> list[str]:
    if contender != PIGGYBACKING or not series.lanes:
        return ["-"] * 5
    cells = [
        f"{series.num_offloaded:.0f}",
        f"{series.hop_steps:.2f}",
        f"{series.kv_bytes_per_s / 1e9:.1f}",
    ]
    bound = result.bound(cell, duty)
    if bound is None or not bound.tokens_per_s:
        return [*cells, "-" if bound is None else f"0 ({bound.name})", "-"]
    part = series.lane_tokens_per_s / bound.tokens_per_s
    return [*cells, f"{bound.tokens_per_s:,.0f} ({bound.name})", f"{part:.2f}"]


def _times(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio else "-"


def goals_table(result: FrameResult, goals: Mapping[int, float]) -> str:
    """Whether piggybacking reached what it should; `goals`: times device only, by device KV."""
    rows = []
    for cell in result.cells:
        goal = None if cell.cell.kv_left is None else goals.get(cell.cell.kv_left)
        piggybacking, alone = cell.of(PIGGYBACKING, FULL_DUTY), cell.ls_alone(FULL_DUTY)
        device, bound = cell.of(DEVICE_ONLY, FULL_DUTY), result.bound(cell, FULL_DUTY)
        if goal is None or piggybacking is None or device is None or alone is None:
            continue
        rows.append(
            [
                f"{cell.cell.context:,}",
                cell.cell.kv_name,
                _spread(paired_ratios(piggybacking, device)),
                f"{goal:g}",
                _spread(paired_tpot_ratios(piggybacking, alone, 99)),
                f"{result.ls_limit:g}",
                _part_of(bound, piggybacking),
                f"{ENOUGH:g}",
            ]
        )
    if not rows:
        return "None that was measured has a goal."
    header = ["context", "device KV for", "x device only", "goal", "LS p99 TPOT x LS alone", "goal"]
    return table([*header, "of the bound", "goal"], rows)


def _part_of(bound: Bound | None, piggybacking: Series) -> str:
    """A limit may allow nothing: residents alone then make LS slower than its limit."""
    if bound is None:
        return "-"
    if not bound.tokens_per_s:
        return f"allows nothing ({bound.name})"
    return f"**{piggybacking.lane_tokens_per_s / bound.tokens_per_s:.2f}** ({bound.name})"


def _spread(ratios: Sequence[float]) -> str:
    """Median, lowest and highest."""
    if not ratios:
        return "-"
    return f"**{median(ratios):.2f}** ({min(ratios):.2f}..{max(ratios):.2f})"


def preemption_note(result: FrameResult) -> str:
    """How many requests lost their place, which then were computed again; empty without any."""
    counts = {
        contender: sum(
            window.num_preemptions
            for cell in result.cells
            for series in cell.series.get(contender, {}).values()
            for window in series.windows
        )
        for contender in CONTENDERS
    }
    texts = [f"{contender} {count}" for contender, count in counts.items() if count]
    return f"Preempted and computed again in windows: {', '.join(texts)}." if texts else ""


def never_below(result: FrameResult) -> str:
    """Where, if anywhere, piggybacking made fewer best-effort tokens than the device alone."""
    ratios = {
        (cell.cell, duty): paired_ratios(ours, theirs)
        for cell in result.cells
        for duty in cell.duties
        if (ours := cell.of(PIGGYBACKING, duty)) and (theirs := cell.of(DEVICE_ONLY, duty))
    }
    known = {load: values for load, values in ratios.items() if values}
    if not known:
        return "Nothing to compare."
    below = [load for load, values in known.items() if max(values) < 1.0]
    (worst, duty), values = min(known.items(), key=lambda item: median(item[1]))
    text = (
        f"Piggybacking against device only, {len(known)} loads: the lowest ratio is "
        f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f}), at context "
        f"{worst.context:,}, device KV for {worst.kv_name}, duty {duty:.0%}; in "
    )
    return text + (f"{len(below)} of them it was below in every round." if below else "none below.")
