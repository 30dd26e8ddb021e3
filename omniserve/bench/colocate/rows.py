"""The table of a comparison, as texts."""

from collections.abc import Callable, Sequence

from omniserve.bench.colocate.comparison import SceneResult
from omniserve.bench.colocate.contenders import LS_ALONE, TITLES, VLLM_PRIORITY, VLLM_SPLIT
from omniserve.bench.colocate.figures import Cell, Figures, Spread
from omniserve.bench.colocate.goals import GoalResult
from omniserve.bench.report.rows import TextTable

HEADINGS = (
    "contender",
    "LS sent",
    "LS joint %",
    "min..max",
    "TTFT %",
    "TPOT %",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "TPOT p50 ms",
    "TPOT p99 ms",
    "BE tok/s",
    "min..max",
    "BE x vLLM",
)


def scene_table(result: SceneResult) -> TextTable:
    """A line a contender: medians over rounds, lowest and highest window."""
    peer = result.cell(VLLM_PRIORITY) or result.cell(VLLM_SPLIT)
    rows = [_row(cell, peer) for cell in result.cells]
    return TextTable(result.scene.title, HEADINGS, rows)


def goal_table(goals: Sequence[GoalResult]) -> TextTable:
    """A line a goal and scene."""
    rows = [[each.verdict, each.text, each.wanted, each.shown, each.scene] for each in goals]
    return TextTable("Goals", ("verdict", "goal", "wanted", "measured", "scene"), rows)


def _row(cell: Cell, peer: Cell | None) -> list[str]:
    joint = cell.spread(lambda window: _percent(window.ls_joint))
    tokens = cell.spread(lambda window: window.be_tokens_per_s)
    has_be = cell.contender != LS_ALONE
    ratio = cell.ratio(peer, lambda window: window.be_tokens_per_s) if peer and has_be else None
    return [
        TITLES[cell.contender],
        str(sum(window.num_ls for window in cell.windows)),
        _number(joint),
        _range(joint),
        _number(cell.spread(lambda window: _percent(window.ls_ttft_share))),
        _number(cell.spread(lambda window: _percent(window.ls_tpot_share))),
        *(_number(cell.spread(figure)) for figure in _LATENCIES[:2]),
        *(_number(cell.spread(figure), 1) for figure in _LATENCIES[2:]),
        _number(tokens) if has_be else "-",
        _range(tokens) if has_be else "-",
        _number(ratio, 2),
    ]


_LATENCIES: tuple[Callable[[Figures], float | None], ...] = (
    lambda window: window.ls_ttft_p50_ms,
    lambda window: window.ls_ttft_p99_ms,
    lambda window: window.ls_tpot_p50_ms,
    lambda window: window.ls_tpot_p99_ms,
)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(spread: Spread | None, digits: int = 0) -> str:
    return "-" if spread is None else f"{spread.median:,.{digits}f}"


def _range(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.low:,.0f}..{spread.high:,.0f}"
