"""Curves over the memory that the device has for keys and values."""

from collections.abc import Callable, Sequence

from omniserve.bench.colocate.comparison import SceneResult
from omniserve.bench.colocate.contenders import LS_ALONE, TITLES
from omniserve.bench.colocate.figures import Figures
from omniserve.charts.axes import linear_axis
from omniserve.charts.page import PALETTE, figure
from omniserve.charts.svg import Series, line_chart

_COLOURS = {key: PALETTE[index % len(PALETTE)] for index, key in enumerate(TITLES)}
X_LABEL = "device KV, MiB"
Value = Callable[[Figures], float | None]


def colour_keys(results: Sequence[SceneResult]) -> list[tuple[str, str]]:
    """Titles and colours of the contenders that were measured."""
    keys = dict.fromkeys(cell.contender for result in results for cell in result.cells)
    return [(TITLES[key], _COLOURS[key]) for key in keys]


def budget_figures(results: Sequence[SceneResult]) -> list[str]:
    """Of one frame and shape, as markup."""
    return [
        _figure(
            results,
            "Best-effort tokens per second",
            "BE tokens/s",
            lambda window: window.be_tokens_per_s,
            but=LS_ALONE,
        ),
        _figure(
            results,
            "LS requests within both objectives",
            "LS joint attainment, %",
            lambda window: None if window.ls_joint is None else 100 * window.ls_joint,
            most=100.0,
        ),
        _figure(
            results,
            "LS time per output token, p99",
            "TPOT p99, ms",
            lambda window: window.ls_tpot_p99_ms,
        ),
    ]


def _figure(
    results: Sequence[SceneResult],
    title: str,
    label: str,
    value: Value,
    but: str = "",
    most: float | None = None,
) -> str:
    drawn = [each for each in _series(results, value) if each.name != TITLES.get(but)]
    highest = max((high for each in drawn for _, _, high in each.spreads), default=1.0)
    widest = max(_mebibytes(result) for result in results)
    chart = line_chart(
        title, linear_axis(X_LABEL, widest), linear_axis(label, most or highest), drawn
    )
    return figure(title, "Medians over rounds, with the lowest and the highest.", chart)


def _series(results: Sequence[SceneResult], value: Value) -> list[Series]:
    ordered = sorted(results, key=_mebibytes)
    series = []
    for key, title in TITLES.items():
        found = [
            (_mebibytes(result), spread)
            for result in ordered
            if (cell := result.cell(key)) and (spread := cell.spread(value))
        ]
        if found:
            points = [(at, spread.median) for at, spread in found]
            spreads = [(at, spread.low, spread.high) for at, spread in found]
            series.append(Series(title, _COLOURS[key], points, "line with dots", spreads))
    return series


def _mebibytes(result: SceneResult) -> float:
    return result.scene.device_kv_bytes / (1 << 20)
