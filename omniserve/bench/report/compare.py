"""Several runs beside each other: every number, and its ratio to the first run's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from omniserve.atomic_file import write_text
from omniserve.bench.report.compare_plots import compare_plots, run_colours
from omniserve.bench.report.rows import TextTable
from omniserve.bench.report.run_summary import Latency, RunSummary, ServerSummary, StreamSummary
from omniserve.bench.report.table import draw
from omniserve.charts.page import figures, header, legend, page, paragraphs, section, table
from omniserve.charts.text import NOTHING, format_ms, format_rate, format_share

_Of = TypeVar("_Of")

_NO_BREAK = "\u00a0"

Format = Callable[[float | None], str]


@dataclass(frozen=True, slots=True)
class _Metric(Generic[_Of]):
    name: str
    value_of: Callable[[_Of], float | None]
    show: Format
    has_ratio: bool = True


def compare(summaries: Mapping[str, RunSummary]) -> list[TextTable]:
    """A table for each stream, by name, and one for the servers; runs go by their labels.

    The first run is what the others are compared with.
    """
    runs = list(summaries.values())
    names = list(dict.fromkeys(each.info.name for run in runs for each in run.streams))
    tables = []
    for name in names:
        streams = [_stream(run, name) for run in runs]
        tables.append(_table(name, list(summaries), streams, _STREAM_METRICS))
    servers = [run.server for run in runs]
    tables.append(_table("The servers", list(summaries), servers, _SERVER_METRICS))
    return [each for each in tables if each.rows]


def render_comparison(summaries: Mapping[str, RunSummary]) -> RenderableType:
    """What `omniserve bench compare` prints."""
    parts: list[RenderableType] = []
    for each in compare(summaries):
        parts += [Text(each.title, style="bold"), draw(each), Text()]
    return Group(*parts[:-1])


def write_comparison(summaries: Mapping[str, RunSummary], path: Path) -> None:
    """One HTML page; replaces the file at once, raises OSError."""
    title = "Comparison of runs"
    tables = [section(each.title, table(each.headings, each.rows)) for each in compare(summaries)]
    runs = [f"{label}: {each.title}, {each.target}" for label, each in summaries.items()]
    plots = compare_plots(summaries)
    body = [
        header(title, [f"ratios are to {next(iter(summaries))}"]),
        section("Runs", paragraphs(runs)),
        section("Plots", legend(list(run_colours(summaries).items())) + figures(plots)),
        *tables,
    ]
    write_text(path, page(title, "\n".join(body)))


def _table(
    title: str, labels: list[str], columns: list[_Of | None], metrics: tuple[_Metric[_Of], ...]
) -> TextTable:
    # Headings are broken at spaces, and a label is not to be.
    names = [label.replace(" ", _NO_BREAK) for label in labels]
    ratios = [f"{name}{_NO_BREAK}/ {names[0]}" for name in names[1:]]
    rows = [
        row
        for metric in metrics
        if (row := _row(metric, columns))[1:].count(NOTHING) < len(row) - 1
    ]
    return TextTable(title, ("", *names, *ratios), rows)


def _row(metric: _Metric[_Of], columns: list[_Of | None]) -> list[str]:
    values = [None if each is None else metric.value_of(each) for each in columns]
    shown = [metric.show(value) for value in values]
    if not metric.has_ratio:
        return [metric.name, *shown, *[NOTHING] * (len(values) - 1)]
    return [metric.name, *shown, *(_ratio(value, values[0]) for value in values[1:])]


def _ratio(value: float | None, first: float | None) -> str:
    return NOTHING if value is None or not first else f"{format_rate(value / first)}x"


def _stream(run: RunSummary, name: str) -> StreamSummary | None:
    return next((each for each in run.streams if each.info.name == name), None)


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"


def _latency(
    name: str, latency_of: Callable[[StreamSummary], Latency]
) -> tuple[_Metric[StreamSummary], ...]:
    return (
        _Metric(f"{name} mean, ms", lambda stream: latency_of(stream).mean_ms, format_ms),
        _Metric(f"{name} p50, ms", lambda stream: latency_of(stream).p50_ms, format_ms),
        _Metric(f"{name} p90, ms", lambda stream: latency_of(stream).p90_ms, format_ms),
        _Metric(f"{name} p99, ms", lambda stream: latency_of(stream).p99_ms, format_ms),
    )


_STREAM_METRICS: tuple[_Metric[StreamSummary], ...] = (
    _Metric("requests", lambda stream: stream.num_requests, _count),
    _Metric("failed", lambda stream: stream.num_failed, _count, has_ratio=False),
    _Metric("rejected", lambda stream: stream.num_rejected, _count, has_ratio=False),
    _Metric("cut off", lambda stream: stream.num_cut_off, _count, has_ratio=False),
    *_latency("TTFT", lambda stream: stream.ttft),
    *_latency("TPOT", lambda stream: stream.tpot),
    *_latency("ITL", lambda stream: stream.itl),
    *_latency("e2e", lambda stream: stream.e2e),
    _Metric("TTFT objective met", lambda stream: stream.attainment.ttft, format_share),
    _Metric("TPOT objective met", lambda stream: stream.attainment.tpot, format_share),
    _Metric("both met", lambda stream: stream.attainment.joint, format_share),
    _Metric("goodput, requests/s", lambda stream: stream.goodput_requests_per_s, format_rate),
    _Metric("goodput, tokens/s", lambda stream: stream.goodput_tokens_per_s, format_rate),
    _Metric("output tokens/s", lambda stream: stream.output_tokens_per_s, format_rate),
    _Metric("prompt tokens/s", lambda stream: stream.prompt_tokens_per_s, format_rate),
)

_SERVER_METRICS: tuple[_Metric[ServerSummary], ...] = (
    _Metric("steps/s", lambda server: server.steps_per_s, format_rate),
    _Metric("preemptions", lambda server: server.num_preemptions, _count),
    _Metric("KV used, mean", lambda server: _used(server), format_share),
    _Metric("lane rows a step", lambda server: server.lane_rows_per_step, format_rate),
    _Metric("tokens/s of the host", lambda server: server.piggybacked_tokens_per_s, format_rate),
)


def _used(server: ServerSummary) -> float | None:
    return server.kv_used_mean_bytes / server.kv_total_bytes if server.kv_total_bytes else None
