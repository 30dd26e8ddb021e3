"""A summary as one HTML page."""

from pathlib import Path

from omniserve.atomic_file import write_text
from omniserve.bench.report.plots import run_plots, stream_colours
from omniserve.bench.report.rows import (
    TextTable,
    clock_table,
    generator_lines,
    latency_table,
    objectives_table,
    outcome_table,
    server_lines,
)
from omniserve.bench.report.run_summary import RunSummary, StreamSummary
from omniserve.charts.page import (
    Card,
    cards,
    figures,
    header,
    legend,
    page,
    paragraphs,
    section,
    table,
)
from omniserve.charts.text import NOTHING, format_ms, format_rate, format_share

_MAX_ERRORS = 20
_METHOD = (
    "Counts and latencies are of the requests that were to be sent in the window; requests that "
    "failed, were rejected or cut off met no objective. TTFT and e2e begin when the trace wanted "
    "the request sent, so a late generator does not flatter the server. TPOT is the mean time "
    "between the tokens of a finished request, ITL the time between one token and the next. A "
    "request without a token has no TTFT, an unfinished one no TPOT and e2e: percentiles leave "
    "them out, objectives do not. Tokens per second count what came in the window."
)


def write_page(summary: RunSummary, path: Path) -> None:
    """Replaces the file at once; raises OSError."""
    write_text(path, render_page(summary))


def render_page(summary: RunSummary) -> str:
    """The whole page, well-formed XML that needs nothing else."""
    colours = stream_colours(summary.streams)
    body = [
        header(summary.title, [summary.target, f"{summary.duration_s:g} s"]),
        cards([card for stream in summary.streams for card in _cards(stream)]),
        _table_section(outcome_table(summary)),
        _table_section(objectives_table(summary)),
        _table_section(latency_table(summary)),
        _errors(summary),
        section("Over the run", legend(list(colours.items())) + figures(run_plots(summary))),
        _server(summary),
        section("How it was measured", paragraphs(_method(summary)) + facts_table(summary.facts)),
    ]
    return page(summary.title, "\n".join(body))


def facts_table(facts: dict[str, object]) -> str:
    """What a run says of its circumstances, a row each; empty where it says nothing."""
    rows = [[key, _fact(value)] for key, value in facts.items()]
    return table(("fact", "value"), rows) if rows else ""


def _cards(stream: StreamSummary) -> list[Card]:
    info = stream.info
    rate = f"{format_rate(stream.output_tokens_per_s)} tokens/s"
    if info.ttft_ms is None and info.tpot_ms is None:
        return [Card(info.name, rate, info.service_class.replace("_", " "))]
    return [
        Card(
            f"{info.name} within objectives",
            format_share(stream.attainment.joint),
            f"of {stream.num_requests} requests; goodput "
            f"{format_rate(stream.goodput_requests_per_s)} requests/s",
        ),
        Card(f"{info.name} TTFT p99", _ms(stream.ttft.p99_ms), _objective(info.ttft_ms)),
        Card(f"{info.name} TPOT p99", _ms(stream.tpot.p99_ms), _objective(info.tpot_ms)),
    ]


def _objective(value_ms: float | None) -> str:
    return "no objective" if value_ms is None else f"objective {value_ms:.4g} ms"


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{format_ms(value)} ms"


def _table_section(shown: TextTable) -> str:
    return section(shown.title, table(shown.headings, shown.rows)) if shown.rows else ""


def _errors(summary: RunSummary) -> str:
    rows = [
        [stream.info.name, str(count), error]
        for stream in summary.streams
        for error, count in list(stream.errors.items())[:_MAX_ERRORS]
    ]
    return section("Errors", table(("stream", "times", "error"), rows)) if rows else ""


def _server(summary: RunSummary) -> str:
    clocks = clock_table(summary)
    parts = [] if summary.server is None else [paragraphs(server_lines(summary.server))]
    if clocks.rows:
        parts.append(
            paragraphs(
                [
                    "Means of what came between the beginning of the run and its last request's "
                    "end: TTFT of first tokens, TPOT and e2e of finished requests. The server's "
                    "clock begins when a request arrives, the client's when it is sent."
                ]
            )
        )
        parts.append(table(clocks.headings, clocks.rows))
    return section("What the server says", "".join(parts)) if parts else ""


def _method(summary: RunSummary) -> list[str]:
    return [*generator_lines(summary), _METHOD]


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return str(value)
