"""From what a run recorded to what it amounts to."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from omniserve.bench.report.clocks import compare_clocks
from omniserve.bench.report.distributions import (
    Values,
    bin_width_s,
    curve_of,
    latency_of,
    percentile_by_bin,
    rate_by_bin,
    some_of,
)
from omniserve.bench.report.run_summary import (
    Attainment,
    RunSummary,
    StreamSeries,
    StreamSummary,
)
from omniserve.bench.report.server_summary import summarise_server
from omniserve.bench.run_record import RequestRecord, RunRecord, StreamInfo
from omniserve.error_groups import count_alike
from omniserve.errors import OmniServeError


def summarise(record: RunRecord) -> RunSummary:
    """The numbers of a run; the window is [0, duration_s). Raises OmniServeError where it is empty:
    a run that ended while it warmed up."""
    if record.duration_s <= 0:
        raise OmniServeError(
            f"run {record.title!r}: it ended while it warmed up; nothing to report"
        )
    bin_s = bin_width_s(record.duration_s)
    by_stream: dict[str, list[RequestRecord]] = {info.name: [] for info in record.streams}
    for request in record.requests:
        by_stream[request.stream].append(request)
    return RunSummary(
        title=record.title,
        target=record.target,
        duration_s=record.duration_s,
        bin_s=bin_s,
        streams=[
            _summarise_stream(info, by_stream[info.name], record.duration_s, bin_s)
            for info in record.streams
        ],
        server=summarise_server(record),
        clocks=compare_clocks(record),
        generator_cores=record.generator_cores,
        facts=dict(record.facts),
    )


def _summarise_stream(
    info: StreamInfo, requests: Sequence[RequestRecord], duration_s: float, bin_s: float
) -> StreamSummary:
    due = [request for request in requests if 0 <= request.scheduled_s < duration_s]
    outcomes = Counter(request.outcome for request in due)
    within = [request for request in due if is_within(info, request)]
    has_goal = info.ttft_ms is not None or info.tpot_ms is not None
    token_times = _concatenated([request.token_times_s for request in requests])
    gaps = _gaps_ms(due)
    return StreamSummary(
        info=info,
        num_requests=len(due),
        num_done=outcomes["done"],
        num_failed=outcomes["failed"],
        num_rejected=outcomes["rejected"],
        num_cut_off=outcomes["cut_off"],
        ttft=latency_of(_milliseconds(request.ttft_s for request in due)),
        tpot=latency_of(_milliseconds(request.tpot_s for request in due)),
        itl=latency_of(gaps),
        e2e=latency_of(_milliseconds(request.e2e_s for request in due)),
        attainment=_attainment(info, due),
        goodput_requests_per_s=len(within) / duration_s if has_goal else None,
        goodput_tokens_per_s=_num_tokens(within) / duration_s if has_goal else None,
        output_tokens_per_s=_num_inside(token_times, duration_s) / duration_s,
        prompt_tokens_per_s=_prompt_tokens(requests, duration_s) / duration_s,
        lateness=latency_of(_lateness_ms(due)),
        errors=dict(Counter(count_alike(each.error for each in due if each.error)).most_common()),
        series=_series(due, token_times, gaps, duration_s, bin_s),
    )


def is_within(info: StreamInfo, request: RequestRecord) -> bool:
    """Whether it met every objective of its stream, if any; one not finished meets none of them."""
    return _meets_ttft(info, request) is not False and _meets_tpot(info, request) is not False


def _attainment(info: StreamInfo, due: Sequence[RequestRecord]) -> Attainment:
    has_ttft, has_tpot = info.ttft_ms is not None, info.tpot_ms is not None

    def share(met: Iterable[bool | None], is_asked: bool) -> float | None:
        return sum(map(bool, met)) / len(due) if is_asked and due else None

    return Attainment(
        ttft=share((_meets_ttft(info, request) for request in due), has_ttft),
        tpot=share((_meets_tpot(info, request) for request in due), has_tpot),
        joint=share((is_within(info, request) for request in due), has_ttft or has_tpot),
    )


def _meets_ttft(info: StreamInfo, request: RequestRecord) -> bool | None:
    """None without the objective."""
    if info.ttft_ms is None:
        return None
    is_done = request.outcome == "done" and request.ttft_s is not None
    return bool(is_done and 1000 * (request.ttft_s or 0.0) <= info.ttft_ms)


def _meets_tpot(info: StreamInfo, request: RequestRecord) -> bool | None:
    """None without the objective."""
    if info.tpot_ms is None:
        return None
    # A single token has no time between tokens.
    return bool(request.outcome == "done" and 1000 * (request.tpot_s or 0.0) <= info.tpot_ms)


def _series(
    due: Sequence[RequestRecord],
    token_times: Values,
    gaps: Values,
    duration_s: float,
    bin_s: float,
) -> StreamSeries:
    ttfts = [(each.scheduled_s, 1000 * each.ttft_s) for each in due if each.ttft_s is not None]
    tpots = [(each.scheduled_s, 1000 * each.tpot_s) for each in due if each.tpot_s is not None]
    ttft_at, ttft_ms = np.array(ttfts or np.empty((0, 2))).T
    tpot_at, tpot_ms = np.array(tpots or np.empty((0, 2))).T
    return StreamSeries(
        ttft_by_send=some_of(sorted(ttfts)),
        ttft_curve=curve_of(ttft_ms),
        tpot_curve=curve_of(tpot_ms),
        itl_curve=curve_of(gaps),
        ttft_p50_ms=percentile_by_bin(ttft_at, ttft_ms, duration_s, bin_s, 50),
        ttft_p99_ms=percentile_by_bin(ttft_at, ttft_ms, duration_s, bin_s, 99),
        tpot_p50_ms=percentile_by_bin(tpot_at, tpot_ms, duration_s, bin_s, 50),
        tpot_p99_ms=percentile_by_bin(tpot_at, tpot_ms, duration_s, bin_s, 99),
        tokens_per_s=rate_by_bin(token_times, duration_s, bin_s),
    )


def _gaps_ms(requests: Sequence[RequestRecord]) -> Values:
    return 1000 * _concatenated([np.diff(each.token_times_s) for each in requests])


def _lateness_ms(requests: Sequence[RequestRecord]) -> Values:
    # Where the run ended before a request was sent, there is no time of sending.
    sent = (each for each in requests if each.outcome != "cut_off" or each.sent_s)
    return _milliseconds(each.sent_s - each.scheduled_s for each in sent)


def _prompt_tokens(requests: Sequence[RequestRecord], duration_s: float) -> int:
    return sum(
        each.prompt_tokens
        for each in requests
        if each.token_times_s and 0 <= each.token_times_s[0] < duration_s
    )


def _num_inside(times: Values, duration_s: float) -> int:
    return int(np.count_nonzero((times >= 0) & (times < duration_s)))


def _num_tokens(requests: Sequence[RequestRecord]) -> int:
    return sum(len(each.token_times_s) for each in requests)


def _milliseconds(values_s: Iterable[float | None]) -> Values:
    return 1000 * np.array([value for value in values_s if value is not None], dtype=np.float64)


def _concatenated(parts: Sequence[Sequence[float] | Values]) -> Values:
    arrays = [np.asarray(part, dtype=np.float64) for part in parts if len(part)]
    return np.concatenate(arrays) if arrays else np.empty(0)
