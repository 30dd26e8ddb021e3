"""Results of the benchmark of two models as Markdown, JSON and a picture."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from models_bench import Result
from models_goals import goals, joint, number, tokens
from models_layouts import BE_ALONE, LS_ALONE, ONE, short_title_of, title_of
from models_plan import ModelsPlan

from omniserve.bench.colocate.control.figures import pooled
from omniserve.bench.colocate.document import markdown_table
from omniserve.bench.colocate.facts import describe_generator
from omniserve.bench.colocate.figures import Cell, Figures, Spread
from omniserve.bench.colocate.objectives import FACTOR
from omniserve.bench.colocate.rows import goal_table
from omniserve.bench.report.rows import TextTable
from omniserve.charts.axes import linear_axis
from omniserve.charts.page import PALETTE
from omniserve.charts.picture import Panel, picture
from omniserve.charts.svg import Series, line_chart

Figure = Callable[[Figures], float | None]
HEADINGS = (
    *("contender", "LS sent", "LS joint %", "min..max", "TTFT %", "TPOT %"),
    *("TTFT p50 / p99 ms", "TPOT p50 / p99 ms", "BE tok/s", "min..max", "one daemon's BE over it"),
)


def document(facts: Sequence[str], plan: ModelsPlan, result: Result) -> str:
    """Markdown, for documents."""
    parts = [
        "\n".join(f"- {fact}" for fact in [*facts, *_conditions(plan, result)]),
        markdown_table(contender_table(result)),
        markdown_table(goal_table(goals(result))),
        "How contenders were found, one window each:",
        markdown_table(search_table(result)),
        describe_generator(result.cells),
        _procedure(plan),
    ]
    return "\n\n".join(parts) + "\n"


def content(facts: Sequence[str], plan: ModelsPlan, result: Result) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        "facts": list(facts),
        "plan": plan.as_data(),
        "result": asdict(result),
        "goals": [asdict(goal) | {"verdict": goal.verdict} for goal in goals(result)],
    }


def contender_table(result: Result) -> TextTable:
    """A line a contender: attainment over the requests of all rounds with its lowest and highest
    round, all else medians over rounds; ratios within a round."""
    own = result.cell(ONE)
    return TextTable("", HEADINGS, [_row(cell, own) for cell in result.cells])


def search_table(result: Result) -> TextTable:
    rows = []
    for window in result.peer.windows if result.peer else ():
        figures = window.figures
        share = f"{100 * window.share:.0f}"
        rows.append(
            [window.pair.title, f"{window.rate:g}", "all", share, f"{figures.be_tokens_per_s:,.0f}"]
        )
    own = [(title_of(ONE), result.own)]
    pairs = [(each.pair.title, trial) for each in result.searches for trial in each.trials]
    for title, trial in [*own, *pairs]:
        share = f"{100 * trial.ls_joint:.0f}"
        be_tokens = f"{trial.be_tokens_per_s:,.0f}"
        rows.append([title, f"{result.rate:g}", str(trial.num_be), share, be_tokens])
    headings = ("contender", "LS requests/s", "BE requests", "LS joint %", "BE tok/s")
    return TextTable("", headings, rows)


def drawing(result: Result) -> str:
    """A dot a contender: up and to the right is better."""
    dots = [
        Series(
            short_title_of(cell.contender),
            PALETTE[index % len(PALETTE)],
            [(spread.median, 100 * share)],
            "line with dots",
        )
        for index, cell in enumerate(result.cells)
        if (spread := cell.spread(tokens)) and (share := pooled(cell, joint, number)) is not None
    ]
    most = max((each.points[0][0] for each in dots), default=1.0)
    chart = line_chart(
        "Both models",
        linear_axis("BE tokens/s", most),
        linear_axis("LS joint attainment, %", 100.0),
        dots,
    )
    keys = [(each.name, each.colour) for each in dots]
    return picture(
        keys,
        [Panel("LS joint attainment, %, and BE tokens/s: up and to the right is better", chart)],
    )


def _conditions(plan: ModelsPlan, result: Result) -> list[str]:
    medians = ", ".join(
        f"{server} {each.ttft_ms:.0f}/{each.tpot_ms:.1f}"
        for server, each in result.unloaded.items()
    )
    held = result.objectives
    how = "given"
    if result.peer is not None:
        held_share = f"{result.peer.share:.0%}"
        how = f"at which {result.peer.pair.title}, held {held_share} in the search"
    waits = result.cell(ONE).layer_waits
    return [
        f"unloaded p50 TTFT/TPOT ms: {medians}; objectives, {FACTOR:g} times the slowest: TTFT "
        f"{held.ttft_ms:.0f} ms, TPOT {held.tpot_ms:.1f} ms",
        f"{result.rate:g} LS requests/s, {how}; {plan.num_be} BE requests always unfinished",
        *([f"LS waits behind BE layers: {waits.text}"] if waits is not None else []),
    ]


def _procedure(plan: ModelsPlan) -> str:
    held, models = plan.comparison, plan.settings.models
    backlog = held.backlog
    return (
        f"LS: {models.ls_arch} {models.preset}, arrivals and lengths of {held.trace}, prompts "
        f"times {held.ls_prompt_scale:g} (at most {held.ls_max_prompt_tokens} tokens), outputs "
        f"times {held.ls_output_scale:g}. BE: {models.be_arch} {models.preset}, prompts of about "
        f"{backlog.prompt_tokens} and outputs of about {backlog.output_tokens} tokens. "
        f"{held.rounds} rounds of windows of {held.duration_s:g} s after {held.warm_up_s:g} s of "
        "warm-up, contenders in turn, all servers resident, each window after all of them rest."
    )


def _row(cell: Cell, own: Cell) -> list[str]:
    spread = cell.spread(joint)
    share = pooled(cell, joint, number)
    be_tokens = None if cell.contender == LS_ALONE else cell.spread(tokens)
    ratio = None if be_tokens is None or cell is own else own.ratio(cell, tokens)
    latencies = ["-"] * 4 if cell.contender == BE_ALONE else _latencies(cell)
    return [
        title_of(cell.contender),
        str(sum(window.num_ls for window in cell.windows)),
        "-" if share is None else f"{100 * share:.1f}",
        _range(spread, 100),
        *latencies,
        _number(be_tokens),
        _range(be_tokens),
        "-" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})",
    ]


def _latencies(cell: Cell) -> list[str]:
    return [
        _number(cell.spread(lambda each: each.ls_ttft_share), 100),
        _number(cell.spread(lambda each: each.ls_tpot_share), 100),
        _both(cell, lambda each: each.ls_ttft_p50_ms, lambda each: each.ls_ttft_p99_ms, 0),
        _both(cell, lambda each: each.ls_tpot_p50_ms, lambda each: each.ls_tpot_p99_ms, 1),
    ]


def _both(cell: Cell, middle: Figure, high: Figure, digits: int) -> str:
    return " / ".join(_number(cell.spread(each), 1, digits) for each in (middle, high))


def _number(spread: Spread | None, times: float = 1, digits: int = 0) -> str:
    return "-" if spread is None else f"{times * spread.median:,.{digits}f}"


def _range(spread: Spread | None, times: float = 1) -> str:
    return "-" if spread is None else f"{times * spread.low:,.0f}..{times * spread.high:,.0f}"
