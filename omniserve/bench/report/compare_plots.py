"""The plots of a comparison: a line for each run."""

from collections.abc import Callable, Mapping, Sequence

from omniserve.bench.report.figures import amount_figure, by_bin, distribution_figure
from omniserve.bench.report.run_summary import Point, RunSummary, StreamSummary
from omniserve.charts.page import PALETTE
from omniserve.charts.svg import Series


def compare_plots(summaries: Mapping[str, RunSummary]) -> list[str]:
    """For every stream, by name: its latencies and its tokens in all runs that have it."""
    names = dict.fromkeys(each.info.name for run in summaries.values() for each in run.streams)
    return [each for name in names for each in _stream_figures(name, summaries) if each]


def run_colours(summaries: Mapping[str, RunSummary]) -> dict[str, str]:
    return {label: PALETTE[place % len(PALETTE)] for place, label in enumerate(summaries)}


def _stream_figures(name: str, summaries: Mapping[str, RunSummary]) -> list[str]:
    colours = run_colours(summaries)
    runs = [
        (label, run, stream)
        for label, run in summaries.items()
        for stream in run.streams
        if stream.info.name == name
    ]

    def drawn(points_of: Callable[[StreamSummary], Sequence[Point]]) -> list[Series]:
        return [Series(label, colours[label], points_of(stream)) for label, _, stream in runs]

    rates = [
        Series(
            label,
            colours[label],
            by_bin(stream.series.tokens_per_s, run.bin_s, run.duration_s),
        )
        for label, run, stream in runs
    ]
    return [
        distribution_figure(
            f"{name}: time to first token",
            "TTFT, ms",
            drawn(lambda stream: stream.series.ttft_curve),
            [stream.info.ttft_ms for _, _, stream in runs],
        ),
        distribution_figure(
            f"{name}: time per output token",
            "TPOT, ms",
            drawn(lambda stream: stream.series.tpot_curve),
            [stream.info.tpot_ms for _, _, stream in runs],
        ),
        amount_figure(
            f"{name}: throughput",
            "output tokens per second",
            rates,
            max(run.duration_s for _, run, _ in runs),
        ),
    ]
