"""The server's own clock beside that of the clients, over the same requests."""

from collections.abc import Iterable, Sequence

from omniserve.bench.report.run_summary import ClockComparison, ClockMeans
from omniserve.bench.run_record import RequestRecord, RunRecord


def compare_clocks(record: RunRecord) -> list[ClockComparison]:
    """One for each that the server tells.

    The server's clock is read when the window begins and after the last request. In between it
    counts first tokens and ends, of requests of the warm-up too; so the clients' are counted.
    """
    return [
        ClockComparison(
            stream=clock.stream,
            server=ClockMeans(
                clock.num_requests, clock.ttft_mean_ms, clock.tpot_mean_ms, clock.e2e_mean_ms
            ),
            client=_client_means(
                [each for each in record.requests if clock.stream in ("", each.stream)]
            ),
        )
        for clock in record.server_clock
    ]


def _client_means(requests: Sequence[RequestRecord]) -> ClockMeans:
    """From when requests were sent: the server cannot know when they should have been."""
    begun = [each for each in requests if each.token_times_s and each.token_times_s[0] >= 0]
    ended = [
        (each, each.ended_s)
        for each in requests
        if each.outcome == "done" and each.ended_s is not None and each.ended_s >= 0
    ]
    return ClockMeans(
        num_requests=len(begun),
        ttft_mean_ms=_mean_ms(each.token_times_s[0] - each.sent_s for each in begun),
        tpot_mean_ms=_mean_ms(each.tpot_s for each, _ in ended),
        e2e_mean_ms=_mean_ms(ended_s - each.sent_s for each, ended_s in ended),
    )


def _mean_ms(values_s: Iterable[float | None]) -> float | None:
    known = [value for value in values_s if value is not None]
    return 1000 * sum(known) / len(known) if known else None
