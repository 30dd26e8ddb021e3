"""The plots of a run."""

from collections.abc import Sequence

from omniserve.bench.report.figures import (
    amount_figure,
    by_bin,
    distribution_figure,
    latency_figure,
    stacked_figure,
)
from omniserve.bench.report.run_summary import Point, RunSummary, ServerSummary, StreamSummary
from omniserve.charts.page import COLOURS, PALETTE
from omniserve.charts.svg import Look, Series

_MIB = 1 << 20


def run_plots(summary: RunSummary) -> list[str]:
    """All figures that the run has numbers for."""
    streams, colours = summary.streams, stream_colours(summary.streams)
    shown = [
        *_latencies_over_time(summary, colours),
        distribution_figure(
            "Time to first token",
            "TTFT, ms",
            [_series(each, colours, each.series.ttft_curve) for each in streams],
            [each.info.ttft_ms for each in streams],
        ),
        distribution_figure(
            "Time per output token",
            "TPOT, ms",
            [_series(each, colours, each.series.tpot_curve) for each in streams],
            [each.info.tpot_ms for each in streams],
        ),
        distribution_figure(
            "Time between tokens",
            "ITL, ms",
            [_series(each, colours, each.series.itl_curve) for each in streams],
        ),
        stacked_figure(
            "Throughput",
            "output tokens per second, stacked",
            [_series(each, colours, _rates(each, summary)) for each in streams],
            summary.duration_s,
        ),
    ]
    if summary.server is not None:
        shown += _server_figures(summary.server, summary.duration_s)
    return [each for each in shown if each]


def stream_colours(streams: Sequence[StreamSummary]) -> dict[str, str]:
    """By name: the class's colour for the first stream of it, others of their own for the rest."""
    spare = iter(PALETTE[2:] * len(streams))
    colours: dict[str, str] = {}
    for stream in streams:
        own = COLOURS[stream.info.service_class]
        colours[stream.info.name] = next(spare) if own in colours.values() else own
    return colours


def _latencies_over_time(summary: RunSummary, colours: dict[str, str]) -> list[str]:
    # The times of a backlog follow from its own size.
    streams = [each for each in summary.streams if each.info.is_open_loop] or summary.streams
    dots = [_series(each, colours, each.series.ttft_by_send, "dots") for each in streams]
    ttfts, tpots = [], []
    for each in streams:
        of = each.series
        ttfts += _trend(each, colours, summary, of.ttft_p50_ms, of.ttft_p99_ms)
        tpots += _trend(each, colours, summary, of.tpot_p50_ms, of.tpot_p99_ms)
    lines = f"p50 (line) and p99 (dashed) of each {summary.bin_s:g} s"
    return [
        latency_figure(
            "TTFT over time",
            f"ms, by when it was to be sent: single requests, {lines}",
            [*dots, *ttfts],
            summary.duration_s,
            [stream.info.ttft_ms for stream in streams],
        ),
        latency_figure(
            "TPOT over time",
            f"ms, by when it was to be sent: {lines}",
            tpots,
            summary.duration_s,
            [stream.info.tpot_ms for stream in streams],
        ),
    ]


def _trend(
    stream: StreamSummary,
    colours: dict[str, str],
    summary: RunSummary,
    p50_ms: Sequence[float | None],
    p99_ms: Sequence[float | None],
) -> list[Series]:
    tails = by_bin(p99_ms, summary.bin_s, summary.duration_s)
    medians = by_bin(p50_ms, summary.bin_s, summary.duration_s)
    return [
        _series(stream, colours, tails, "dashed line"),
        _series(stream, colours, medians),
    ]


def _server_figures(server: ServerSummary, duration_s: float) -> list[str]:
    where = "mean of the layers" if server.is_per_layer else "all layers together"
    lanes = server.lanes if server.lane_rows_per_step else []
    used = [(at, used_bytes / _MIB) for at, used_bytes in server.kv_used]
    total = server.kv_total_bytes / _MIB
    return [
        amount_figure(
            "Lanes",
            f"lane rows that joined a step, {where}",
            [Series("lanes", COLOURS["kv"], lanes)],
            duration_s,
        ),
        amount_figure(
            "KV pool",
            f"MiB in use, of {total:.0f}",
            [Series("KV", COLOURS["kv"], used if total else [])],
            duration_s,
            total,
        ),
    ]


def _rates(stream: StreamSummary, summary: RunSummary) -> list[Point]:
    return by_bin(stream.series.tokens_per_s, summary.bin_s, summary.duration_s)


def _series(
    stream: StreamSummary, colours: dict[str, str], points: Sequence[Point], look: Look = "line"
) -> Series:
    return Series(stream.info.name, colours[stream.info.name], points, look)
