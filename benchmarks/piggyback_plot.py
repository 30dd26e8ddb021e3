"""The frontier as a picture: best-effort tokens a second against latency-sensitive TPOT."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import say
from piggyback_contenders import DEVICE_ONLY, LS_ALONE, PIGGYBACKING, SECOND_ENGINE
from piggyback_lanes import LaneCase
from piggyback_report import FrameResult
from piggyback_results import Series
from piggyback_sweep import FULL_DUTY

_STYLES = {
    DEVICE_ONLY: ("tab:gray", "o"),
    PIGGYBACKING: ("tab:blue", "s"),
    SECOND_ENGINE: ("tab:orange", "^"),
}


def draw(results: Sequence[FrameResult], caps: Sequence[LaneCase], path: Path) -> bool:
    """Writes a picture with a panel for each frame and context; false without matplotlib."""
    try:
        # Only this picture needs it, so it is no requirement.
        figure_module: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        say("no matplotlib, so no plot (pip install matplotlib)")
        return False
    contexts = sorted({cell.cell.context for result in results for cell in result.cells})
    figure = figure_module.Figure(figsize=(5.2 * len(contexts), 4.2 * len(results)))
    panels = figure.subplots(len(results), len(contexts), squeeze=False)
    for result, row in zip(results, panels, strict=True):
        for context, panel in zip(contexts, row, strict=True):
            if all(cell.cell.context != context for cell in result.cells):
                panel.set_axis_off()
                continue
            _draw_panel(panel, result, context)
            if result is results[0]:
                _draw_caps(panel, [case for case in caps if case.context == context])
            panel.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def _draw_panel(panel: Any, result: FrameResult, context: int) -> None:
    cells = [cell for cell in result.cells if cell.cell.context == context]
    for contender, (colour, marker) in _STYLES.items():
        points = [
            (cell.cell.kv_name, point)
            for cell in cells
            if (point := _point(cell.of(contender, FULL_DUTY))) is not None
        ]
        if points:
            xs, ys = zip(*(point for _, point in points), strict=True)
            panel.plot(xs, ys, marker=marker, color=colour, label=contender, linewidth=1)
        for name, (x, y) in points:
            panel.annotate(name, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    alone = [point for cell in cells if (point := _point(cell.of(LS_ALONE, FULL_DUTY)))]
    if alone:
        limit_ms = result.ls_limit * min(x for x, _ in alone)
        panel.axvline(limit_ms, color="tab:red", linewidth=1, linestyle="--")
        panel.text(
            limit_ms,
            0.02,
            f" {result.ls_limit} x LS alone",
            fontsize=7,
            color="tab:red",
            transform=panel.get_xaxis_transform(),
        )
    panel.set_title(f"{result.frame.name}, context {context:,}", fontsize=9)
    panel.set_xlabel("LS TPOT p99, ms (log; labels: requests with device KV)", fontsize=8)
    panel.set_ylabel("BE tokens/s, LS all the time", fontsize=8)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("{x:g}")
    panel.tick_params(which="both", labelsize=7)
    panel.set_ylim(bottom=0)


def _draw_caps(panel: Any, caps: Sequence[LaneCase]) -> None:
    """Piggybacking with other caps on lane rows beside latency-sensitive ones."""
    points = [(case.label, _point(case.series[FULL_DUTY])) for case in caps]
    known = [(label, point) for label, point in points if point is not None]
    if known:
        xs, ys = zip(*(point for _, point in known), strict=True)
        panel.plot(xs, ys, "x:", color="tab:blue", label="piggybacking, n lane rows", linewidth=1)
    for label, (x, y) in known:
        panel.annotate(f"n={label}", (x, y), fontsize=7, xytext=(3, -8), textcoords="offset points")


def _point(series: Series | None) -> tuple[float, float] | None:
    last_s = series.tpot_s(99) if series is not None else None
    return None if series is None or last_s is None else (last_s * 1e3, series.be_per_s)
