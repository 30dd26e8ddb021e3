"""The tables of a report as texts, the same for the terminal and the page."""

from dataclasses import dataclass

from omniserve.bench.report.run_summary import Latency, RunSummary, ServerSummary, StreamSummary
from omniserve.charts.text import format_ms, format_rate, format_share


@dataclass(frozen=True, slots=True)
class TextTable:
    """The first column names what a row is about; a row has as many texts as there are headings."""

    title: str
    headings: tuple[str, ...]
    rows: list[list[str]]


def outcome_table(summary: RunSummary) -> TextTable:
    headings = (
        *("stream", "requests", "done", "failed", "rejected", "cut off"),
        *("output tok/s", "prompt tok/s"),
    )
    return TextTable("Outcome", headings, [_outcome(stream) for stream in summary.streams])


def objectives_table(summary: RunSummary) -> TextTable:
    """Of the streams that have objectives."""
    headings = (
        *("stream", "TTFT ms", "met", "TPOT ms", "met", "both met"),
        *("goodput req/s", "goodput tok/s"),
    )
    rows = [_objectives(each) for each in summary.streams if each.goodput_tokens_per_s is not None]
    return TextTable("Objectives", headings, rows)


def latency_table(summary: RunSummary) -> TextTable:
    headings = ("stream", "ms", "of", "mean", "p50", "p90", "p99", "max")
    rows = [row for stream in summary.streams for row in _latencies(stream)]
    return TextTable("Latency", headings, rows)


def clock_table(summary: RunSummary) -> TextTable:
    """No rows where the server tells nothing."""
    headings = ("stream", "mean ms", "server", "client", "server's requests", "client's requests")
    rows = []
    for clock in summary.clocks:
        server, client = clock.server, clock.client
        for name, theirs, ours in (
            ("TTFT", server.ttft_mean_ms, client.ttft_mean_ms),
            ("TPOT", server.tpot_mean_ms, client.tpot_mean_ms),
            ("e2e", server.e2e_mean_ms, client.e2e_mean_ms),
        ):
            if theirs is not None:
                means = (format_ms(theirs), format_ms(ours))
                counts = (str(server.num_requests), str(client.num_requests))
                rows.append([clock.stream or "all", name, *means, *counts])
    return TextTable("The server's own clock", headings, rows)


def server_lines(server: ServerSummary) -> list[str]:
    """What the server said of itself, a sentence each."""
    lines = [
        f"{server.num_running_mean:.1f} requests running, {server.num_waiting_mean:.1f} waiting "
        f"(means); {server.steps_per_s:.1f} steps/s; {server.num_preemptions} preemptions"
    ]
    if server.kv_total_bytes:
        mean, most = (
            format_share(used / server.kv_total_bytes)
            for used in (server.kv_used_mean_bytes, server.kv_used_max_bytes)
        )
        lines.append(
            f"KV pool of {server.kv_total_bytes / (1 << 20):.0f} MiB: {mean} used in the mean, "
            f"{most} at most"
        )
    if server.lane_rows_per_step:
        where = "at a layer" if server.is_per_layer else "of all layers together"
        lines.append(
            f"piggybacking: {server.lane_rows_per_step:.2f} lane rows a step {where}, "
            f"{server.num_offloaded_mean:.1f} requests on the host, "
            f"{server.piggybacked_tokens_per_s:.1f} tokens/s of theirs"
        )
    return lines


def generator_lines(summary: RunSummary) -> list[str]:
    """How well the load generator kept to the trace; nothing of a simulated run."""
    lines = []
    for stream in summary.streams:
        late = stream.lateness
        if stream.info.is_open_loop and late.p50_ms is not None and late.max_ms:
            lines.append(
                f"{stream.info.name}: sent {late.p50_ms:.2f} ms after the trace's time (p50), "
                f"{late.p99_ms:.2f} ms (p99), {late.max_ms:.2f} ms (most)"
            )
    if summary.generator_cores:
        lines.append(f"the load generator used {summary.generator_cores:.2f} cores")
    return lines


def notes(summary: RunSummary) -> list[str]:
    """What a reader must know before the figures: traces that ended early, requests cut short."""
    noted = summary.facts.get("notes")
    return [str(note) for note in noted] if isinstance(noted, list) else []


def _outcome(stream: StreamSummary) -> list[str]:
    counts = (
        *(stream.num_requests, stream.num_done, stream.num_failed),
        *(stream.num_rejected, stream.num_cut_off),
    )
    rates = (stream.output_tokens_per_s, stream.prompt_tokens_per_s)
    return [stream.info.name, *map(str, counts), *map(format_rate, rates)]


def _objectives(stream: StreamSummary) -> list[str]:
    met = stream.attainment
    return [
        stream.info.name,
        *(format_ms(stream.info.ttft_ms), format_share(met.ttft)),
        *(format_ms(stream.info.tpot_ms), format_share(met.tpot)),
        format_share(met.joint),
        *(format_rate(stream.goodput_requests_per_s), format_rate(stream.goodput_tokens_per_s)),
    ]


def _latencies(stream: StreamSummary) -> list[list[str]]:
    kinds = (
        *(("TTFT", stream.ttft), ("TPOT", stream.tpot)),
        *(("ITL", stream.itl), ("e2e", stream.e2e)),
    )
    return [[stream.info.name, name, *_latency(latency)] for name, latency in kinds if latency.num]


def _latency(latency: Latency) -> list[str]:
    values = (latency.mean_ms, latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms)
    return [str(latency.num), *map(format_ms, values)]
