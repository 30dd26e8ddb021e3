"""The server's own clock over a run: its metrics after it less those before."""

from collections.abc import Iterable, Sequence

from omniserve.bench.load.target import Clock, ClockKey, ClockReading, Latencies, TargetInfo
from omniserve.bench.run_record import ServerClock, StreamInfo


def server_clocks(
    info: TargetInfo, streams: Sequence[StreamInfo], before: Clock, after: Clock
) -> list[ServerClock]:
    """One for each stream that the server can tell from the others, and one for all together."""
    spent = {
        key: _less(reading, before.get(key, ClockReading()))
        for key, reading in after.items()
        if any(stream.model == key.model for stream in streams)
    }
    by_stream = {stream.name: _key(info, stream, spent) for stream in streams}
    keys = list(by_stream.values())
    clocks = [
        _clock(name, [spent[key]])
        for name, key in by_stream.items()
        if key is not None and keys.count(key) == 1
    ]
    return [*clocks, _clock("", spent.values())] if spent else clocks


def _key(info: TargetInfo, stream: StreamInfo, clock: Clock) -> ClockKey | None:
    """Where the server counts a stream's requests."""
    tier = info.tier(stream.model, stream.tier)
    key = ClockKey(stream.model, "" if tier is None else tier.name)
    return key if key in clock else None


def _less(after: ClockReading, before: ClockReading) -> ClockReading:
    return ClockReading(
        ttft=_latencies_less(after.ttft, before.ttft),
        tpot=_latencies_less(after.tpot, before.tpot),
        e2e=_latencies_less(after.e2e, before.e2e),
    )


def _latencies_less(after: Latencies, before: Latencies) -> Latencies:
    return Latencies(after.num - before.num, after.total_s - before.total_s)


def _clock(stream: str, readings: Iterable[ClockReading]) -> ServerClock:
    readings = list(readings)
    return ServerClock(
        stream=stream,
        num_requests=round(sum(reading.ttft.num for reading in readings)),
        ttft_mean_ms=_mean_ms([reading.ttft for reading in readings]),
        tpot_mean_ms=_mean_ms([reading.tpot for reading in readings]),
        e2e_mean_ms=_mean_ms([reading.e2e for reading in readings]),
    )


def _mean_ms(latencies: Sequence[Latencies]) -> float | None:
    num = sum(each.num for each in latencies)
    return 1000 * sum(each.total_s for each in latencies) / num if num > 0 else None
