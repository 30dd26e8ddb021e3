"""Curves over the memory that the device has for keys and values."""

from collections.abc import Callable, Sequence

from omniserve.bench.colocate.comparison import SceneResult
from omniserve.bench.colocate.contenders import LS_ALONE, TITLES
from omniserve.bench.colocate.figures import Cell, Figures
from omniserve.charts.axes import linear_axis
from omniserve.charts.page import PALETTE, figure
from omniserve.charts.svg import Series, line_chart

_COLOURS = {key: PALETTE[index % len(PALETTE)] for index, key in enumerate(TITLES)}
X_LABEL, JOINT_LABEL = "device KV, MiB", "LS joint attainment, %"
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
            _be_tokens,
            but=LS_ALONE,
        ),
        _figure(
            results,
            "LS requests within both objectives",
            JOINT_LABEL,
            _joint_percent,
            most=100.0,
        ),
        _figure(
            results,
            "LS time per output token, p99",
            "TPOT p99, ms",
            lambda window: window.ls_tpot_p99_ms,
        ),
    ]


def trade_figure(result: SceneResult) -> str:
    """Both streams of one scene, a dot a contender: up and to the right is better."""
    dots = [
        Series(
            TITLES[cell.contender],
            _COLOURS[cell.contender],
            [(tokens.median, share)],
            "line with dots",
        )
        for cell in result.cells
        if (tokens := cell.spread(_be_tokens)) and (share := _median_percent(cell)) is not None
    ]
    most = max((point[0] for each in dots for point in each.points), default=1.0)
    chart = line_chart(
        "Both streams", linear_axis("BE tokens/s", most), linear_axis(JOINT_LABEL, 100.0), dots
    )
    return figure("Both streams", "Medians; up and to the right is better.", chart)


def _be_tokens(window: Figures) -> float:
    return window.be_tokens_per_s


def _joint_percent(window: Figures) -> float | None:
    return None if window.ls_joint is None else 100 * window.ls_joint


def _median_percent(cell: Cell) -> float | None:
    spread = cell.spread(_joint_percent)
    return None if spread is None else spread.median


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
