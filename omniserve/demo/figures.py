"""The plots of the report page."""

import math
from collections.abc import Callable, Iterable, Sequence

from omniserve.charts.axes import linear_axis, log_axis, time_axis
from omniserve.charts.page import COLOURS, figure
from omniserve.charts.svg import Mark, Series, line_chart, stacked_chart, steps
from omniserve.demo.measure import (
    RequestTrace,
    mean_by_bin,
    running_over_time,
    tokens_by_second,
    tpots_ms,
    ttfts_ms,
    waiting_over_time,
)
from omniserve.demo.result import DemoResult

MAX_CURVE_POINTS = 500
MAX_BINS = 100
MIN_BIN_S = 0.5


def run_figures(result: DemoResult) -> list[str]:
    """All plots, each in its frame."""
    tier = result.summaries[0].tier
    return [
        figure(
            "Time to first token",
            "share of requests that had it within x, in %",
            _distribution(result, ttfts_ms, "TTFT, ms", tier.ttft_ms),
        ),
        figure(
            "Time per output token",
            "share of requests that needed at most x, in %",
            _distribution(result, tpots_ms, "TPOT, ms", tier.tpot_ms),
        ),
        figure("Throughput", "tokens per second, stacked", _throughput(result)),
        figure(
            "Waiting requests",
            "sent, and no token yet; mean of short spans",
            _counts(result, "waiting requests", waiting_over_time),
        ),
        figure(
            "Running requests",
            "between first and last token; mean of short spans",
            _counts(result, "running requests", running_over_time),
        ),
        *_kv_figure(result),
    ]


def _distribution(
    result: DemoResult,
    values_of: Callable[[Iterable[RequestTrace]], list[float]],
    label: str,
    objective_ms: float | None,
) -> str:
    values = {name: sorted(values_of(traces)) for name, traces in _by_tier(result).items()}
    marks = [] if objective_ms is None else [Mark(objective_ms, f"objective {objective_ms:g} ms")]
    everything = [value for some in values.values() for value in some]
    x = log_axis(label, [*everything, *(mark.x for mark in marks)])
    series = [
        Series(
            summary.tier.name,
            COLOURS[summary.tier.service_class],
            _curve(values[summary.tier.name]),
        )
        for summary in result.summaries
    ]
    return line_chart(label, x, linear_axis("%", 100), series, marks)


def _curve(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """The empirical distribution in percent, thinned where there are very many values."""
    if not ordered:
        return []
    stride = max(1, len(ordered) // MAX_CURVE_POINTS)
    points = [(ordered[0], 0.0)]
    points += [
        (ordered[index], 100 * (index + 1) / len(ordered))
        for index in range(0, len(ordered), stride)
    ]
    return steps([*points, (ordered[-1], 100.0)], ordered[-1])


def _throughput(result: DemoResult) -> str:
    num_seconds = max(1, int(result.record.window_s))
    series = []
    for summary in result.summaries:
        bins = tokens_by_second(_by_tier(result)[summary.tier.name], 0, num_seconds)
        # A bin stands for its whole second, so the picture has to reach from edge to edge.
        points = [(0.0, bins[0]), *((at + 0.5, value) for at, value in enumerate(bins))]
        points.append((float(num_seconds), bins[-1]))
        series.append(Series(summary.tier.name, COLOURS[summary.tier.service_class], points))
    top = max(sum(values) for values in zip(*(_heights(each) for each in series), strict=True))
    x = time_axis("s since the start", float(num_seconds))
    return stacked_chart("Throughput", x, linear_axis("tokens/s", top), series)


def _heights(series: Series) -> list[float]:
    return [value for _, value in series.points]


def _counts(
    result: DemoResult,
    title: str,
    counts_of: Callable[[Iterable[RequestTrace]], list[tuple[float, int]]],
) -> str:
    ended = [trace.ended_s for trace in result.record.traces if trace.ended_s is not None]
    until = max([result.record.window_s, *ended])
    num_bins = min(MAX_BINS, math.ceil(until / MIN_BIN_S))
    series = [
        Series(
            summary.tier.name,
            COLOURS[summary.tier.service_class],
            mean_by_bin(counts_of(_by_tier(result)[summary.tier.name]), until, num_bins),
        )
        for summary in result.summaries
    ]
    top = max(value for each in series for value in _heights(each))
    marks = [Mark(result.record.window_s, "no new requests")]
    x, y = time_axis("s since the start", until), linear_axis("requests", max(top, 1))
    return line_chart(title, x, y, series, marks)


def _kv_figure(result: DemoResult) -> list[str]:
    samples = result.record.samples
    if not samples or not samples[-1].kv_total_bytes:
        return []
    total = samples[-1].kv_total_bytes
    points = [(sample.at_s, 100 * sample.kv_used_bytes / total) for sample in samples]
    preemptions = samples[-1].num_preemptions - samples[0].num_preemptions
    x = time_axis("s since the start", points[-1][0])
    chart = line_chart("KV pool", x, linear_axis("%", 100), [Series("KV", COLOURS["kv"], points)])
    note = f"used by both tiers, in % of {total / (1 << 20):.0f} MiB; {preemptions} preemptions"
    return [figure("KV pool", note, chart)]


def _by_tier(result: DemoResult) -> dict[str, list[RequestTrace]]:
    return {
        summary.tier.name: [
            trace for trace in result.record.traces if trace.tier == summary.tier.name
        ]
        for summary in result.summaries
    }
