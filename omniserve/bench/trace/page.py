"""A page of plots that shows traces side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from omniserve.atomic_file import write_text
from omniserve.bench.trace.describe import TraceDescription, describe
from omniserve.bench.trace.facts import facts
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.statistics import Numbers, counts, fano
from omniserve.bench.trace.trace import Trace
from omniserve.bench.trace.transform import spread_ticks
from omniserve.charts.axes import Axis, linear_axis, log_axis, time_axis
from omniserve.charts.page import PALETTE, figure, figures, header, legend, page, section, table
from omniserve.charts.svg import Point, Series, line_chart, steps

_MAX_DOTS = 1500
_MAX_CURVE_POINTS = 400
_MAX_BINS = 240
_BIN_LENGTHS_S = (1, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
_FANO_WINDOWS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_MIN_FANO_WINDOWS = 5


def write_page(traces: Sequence[Trace], path: Path) -> None:
    """One HTML file that needs nothing else; raises TraceError where it cannot be written.

    One to eight traces: as many as there are colours.
    """
    assert 1 <= len(traces) <= len(PALETTE)
    text = render_page(traces, [describe(trace) for trace in traces])
    try:
        write_text(path, text)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error


def render_page(traces: Sequence[Trace], descriptions: Sequence[TraceDescription]) -> str:
    names = [trace.name for trace in traces]
    rows = [(fact.label, *fact.values, fact.meaning) for fact in facts(descriptions)]
    body = [
        header("Traces of requests", names),
        legend(list(zip(names, PALETTE, strict=False))),
        figures(_figures(traces)),
        section("Figures", table(("", *names, "meaning"), rows)),
    ]
    return page(", ".join(names), "\n".join(body))


def _figures(traces: Sequence[Trace]) -> list[str]:
    times_s = [np.array([request.arrival_s for request in spread_ticks(trace)]) for trace in traces]
    prompts = [[request.prompt_tokens for request in trace] for trace in traces]
    outputs = [
        [request.output_tokens for request in trace if not request.failed] for trace in traces
    ]
    lengths = [
        _distribution("Prompts", "tokens", traces, prompts),
        _distribution("Outputs", "tokens", traces, outputs),
        figure("Lengths together", "one dot a request, of a part of them", _lengths(traces)),
    ]
    if not any(trace.duration_s for trace in traces):
        return lengths
    return [
        _arrivals(traces, times_s),
        _burstiness(traces, times_s),
        _distribution(
            "Gaps", "seconds between arrivals", traces, [np.diff(each) for each in times_s]
        ),
        *lengths,
    ]


def _arrivals(traces: Sequence[Trace], times_s: Sequence[Numbers]) -> str:
    longest_s = max(trace.duration_s for trace in traces)
    bin_s = next((each for each in _BIN_LENGTHS_S if longest_s <= each * _MAX_BINS), 604_800)
    series = []
    for trace, colour, times in zip(traces, PALETTE, times_s, strict=False):
        rates = counts(times, bin_s) / bin_s
        points = [(place * float(bin_s), rate) for place, rate in enumerate(rates.tolist())]
        series.append(Series(trace.name, colour, steps(points, len(rates) * float(bin_s))))
    x = time_axis("s", max(longest_s, 1.0))
    chart = line_chart("Arrivals", x, _rate_axis(series), series)
    return figure("Arrivals", f"requests per second, mean of {bin_s} s", chart)


def _burstiness(traces: Sequence[Trace], times_s: Sequence[Numbers]) -> str:
    series = []
    for trace, colour, times in zip(traces, PALETTE, times_s, strict=False):
        windows_s = [
            each for each in _FANO_WINDOWS_S if trace.duration_s >= each * _MIN_FANO_WINDOWS
        ]
        found = [(each, fano(times, each)) for each in windows_s]
        points = [(at, value) for at, value in found if value]
        series.append(Series(trace.name, colour, points, "line with dots"))
    x = log_axis("s", [at for each in series for at, _ in each.points])
    y = log_axis("variance / mean", [1.0, *(value for each in series for _, value in each.points)])
    caption = "variance over mean of the arrivals in windows of x seconds; 1 for Poisson arrivals"
    return figure("Burstiness", caption, line_chart("Burstiness", x, y, series))


def _distribution(
    title: str, label: str, traces: Sequence[Trace], values: Sequence[Sequence[float] | Numbers]
) -> str:
    series = [
        Series(trace.name, colour, _curve(np.sort(np.asarray(each, dtype=np.float64))))
        for trace, colour, each in zip(traces, PALETTE, values, strict=False)
    ]
    x = log_axis(label, [at for each in series for at, _ in each.points])
    chart = line_chart(title, x, linear_axis("%", 100), series)
    return figure(title, f"share of requests with at most x {label}, in %", chart)


def _curve(ordered: Numbers) -> list[Point]:
    if not len(ordered):
        return []
    levels = np.linspace(0, 1, min(_MAX_CURVE_POINTS, len(ordered)))
    places = np.ceil(levels * (len(ordered) - 1)).astype(np.int64)
    shares = 100 * (places + 1) / len(ordered)
    return list(zip(ordered[places].tolist(), shares.tolist(), strict=True))


def _lengths(traces: Sequence[Trace]) -> str:
    series = []
    for trace, colour in zip(traces, PALETTE, strict=False):
        shown = [request for request in trace if not request.failed]
        stride = -(-len(shown) // _MAX_DOTS) or 1
        points = [
            (float(request.prompt_tokens), float(request.output_tokens))
            for request in shown[::stride]
        ]
        series.append(Series(trace.name, colour, points, "dots"))
    x = log_axis("prompt tokens", _coordinates(series, lambda point: point[0]))
    y = log_axis("output tokens", _coordinates(series, lambda point: point[1]))
    return line_chart("Lengths", x, y, series)


def _rate_axis(series: Sequence[Series]) -> Axis:
    return linear_axis("requests/s", max(_coordinates(series, lambda point: point[1]), default=1.0))


def _coordinates(series: Sequence[Series], pick: Callable[[Point], float]) -> list[float]:
    return [pick(point) for each in series for point in each.points]
