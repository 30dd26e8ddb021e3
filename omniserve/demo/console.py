"""The end of a run in the terminal: the table, what went wrong, how to go on."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omniserve.charts.text import format_ms, format_share
from omniserve.demo.measure import TierSummary
from omniserve.demo.next_steps import Step
from omniserve.demo.result import DemoResult
from omniserve.demo.text import goal_text, styled

MAX_ERRORS = 5


def print_result(console: Console, result: DemoResult) -> None:
    console.print()
    console.print(_table(result))
    console.print()
    for summary in result.summaries:
        for line in _remarks(summary):
            console.print(line, soft_wrap=True)
    errors = result.errors()
    for text, count in list(errors.items())[:MAX_ERRORS]:
        console.print(Text(f"failed {count}x: {text}", style="red"), soft_wrap=True)
    if len(errors) > MAX_ERRORS:
        console.print(f"and {len(errors) - MAX_ERRORS} other errors, see the report")


def print_next_steps(console: Console, steps: Sequence[Step]) -> None:
    """Only what fits on a line each: the table above has to stay in sight."""
    console.print()
    for step in steps:
        if "\n" not in step.code:
            console.print(Text.assemble((f"{step.title}: ", "bold"), step.code), soft_wrap=True)


def _table(result: DemoResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("tier", no_wrap=True)
    for heading in (
        *("requests", "refused", "errors", "TTFT\np50 ms", "TTFT\np99 ms", "TPOT\np50 ms"),
        *("TPOT\np99 ms", "share\nwithin", "tokens/s"),
    ):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for summary in result.summaries:
        table.add_row(
            styled(summary.tier),
            str(summary.num_sent),
            str(summary.num_refused),
            Text(str(summary.num_failed), style="bold red" if summary.num_failed else ""),
            format_ms(summary.ttft_p50_ms),
            format_ms(summary.ttft_p99_ms),
            format_ms(summary.tpot_p50_ms),
            format_ms(summary.tpot_p99_ms),
            _share(summary),
            f"{summary.tokens_per_s:.1f}",
        )
    return table


def _share(summary: TierSummary) -> Text:
    style = {True: "bold green", False: "bold red", None: ""}[summary.is_goal_met]
    return Text(format_share(summary.share_within), style=style)


def _remarks(summary: TierSummary) -> list[str]:
    name, lines = summary.tier.name, []
    is_met = summary.is_goal_met
    if is_met is not None:
        verdict = "met" if is_met else "missed"
        lines.append(f"{name}: {goal_text(summary.tier)}: {verdict}")
    if summary.num_refused:
        lines.append(
            f"{name}: {summary.num_refused} of {summary.num_sent} requests refused: more was "
            "waiting than the tier's promises allow"
        )
    if summary.num_cut_off:
        lines.append(
            f"{name}: {summary.num_cut_off} of {summary.num_sent} requests cut off at the end"
        )
    return lines
