"""The table of a scene of control, as texts."""

from omniserve.bench.colocate.contenders import LS_ALONE, NO_CONTROL, TITLES
from omniserve.bench.colocate.control.comparison import ControlResult
from omniserve.bench.colocate.control.figures import Share, Weight, pooled
from omniserve.bench.colocate.figures import Cell, Figures, Spread
from omniserve.bench.report.rows import TextTable

HEADINGS = (
    "contender",
    "LS sent",
    "refused %",
    "joint % sent",
    "min..max",
    "joint % taken",
    "TTFT % sent",
    "TTFT % taken",
    "TPOT % sent",
    "TTFT p99 ms",
    "TPOT p99 ms",
    "LS good tok/s",
    "BE tok/s",
    "min..max",
    "BE x no control",
)


def control_table(result: ControlResult) -> TextTable:
    """A line a contender. Shares are of the requests of all rounds; their lowest and highest are
    those of a round; all else is the median over rounds."""
    base = result.cell(NO_CONTROL)
    rows = [_row(each.cell, base) for each in result.cells]
    return TextTable(result.title, HEADINGS, rows)


def _row(cell: Cell, base: Cell | None) -> list[str]:
    has_be = cell.contender != LS_ALONE
    tokens = cell.spread(lambda each: each.be_tokens_per_s) if has_be else None
    ratio = cell.ratio(base, lambda each: each.be_tokens_per_s) if base and has_be else None
    joint = cell.spread(lambda each: each.ls_joint)
    return [
        TITLES[cell.contender],
        str(sum(each.num_ls for each in cell.windows)),
        _percent(cell, lambda each: each.num_refused / each.num_ls if each.num_ls else None, _sent),
        _percent(cell, lambda each: each.ls_joint, _sent),
        "-" if joint is None else f"{100 * joint.low:.0f}..{100 * joint.high:.0f}",
        _percent(cell, lambda each: each.ls_joint_of_taken, _taken),
        _percent(cell, lambda each: each.ls_ttft_share, _sent),
        _percent(cell, lambda each: each.ls_ttft_share_of_taken, _taken),
        _percent(cell, lambda each: each.ls_tpot_share, _sent),
        _number(cell.spread(lambda each: each.ls_ttft_p99_ms)),
        _number(cell.spread(lambda each: each.ls_tpot_p99_ms), 1),
        _number(cell.spread(lambda each: each.ls_goodput_tokens_per_s)),
        _number(tokens),
        "-" if tokens is None else f"{tokens.low:,.0f}..{tokens.high:,.0f}",
        _number(ratio, 2),
    ]


def _sent(window: Figures) -> int:
    return window.num_ls


def _taken(window: Figures) -> int:
    return window.num_taken


def _percent(cell: Cell, share: Share, weight: Weight) -> str:
    value = pooled(cell, share, weight)
    return "-" if value is None else f"{100 * value:.1f}"


def _number(spread: Spread | None, digits: int = 0) -> str:
    return "-" if spread is None else f"{spread.median:,.{digits}f}"
