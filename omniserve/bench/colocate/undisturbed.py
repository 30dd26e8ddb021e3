"""Windows that were left alone: by other processes, and by whatever makes the generator late."""

from collections.abc import Awaitable, Callable

from omniserve.bench.run_record import RunRecord
from omniserve.others_meter import QUIET_CORES

OTHERS_CORES = "others_cores"
"""Fact of a window: cores that processes without a part in it used, on average."""
LATE_MS = 100.0
"""A generator that sends so late did not run at that time: what it saw is not the server's."""


async def measure_undisturbed(
    measure: Callable[[], Awaitable[RunRecord]], max_tries: int, say: Callable[[str], None]
) -> RunRecord:
    """The first window that nothing disturbed, of `max_tries` the one that was disturbed least;
    `measure` leaves the fact OTHERS_CORES."""
    records: list[RunRecord] = []
    for _ in range(max_tries):
        records.append(await measure())
        if _disturbance(records[-1]) <= 1.0:
            break
        say(
            f"disturbed: other processes used {_others_cores(records[-1]):.2f} cores meanwhile, "
            f"a request was sent {_late_ms(records[-1]):.0f} ms late"
        )
    return min(records, key=_disturbance)


def _disturbance(record: RunRecord) -> float:
    """Up to 1 it is none."""
    return max(_others_cores(record) / QUIET_CORES, _late_ms(record) / LATE_MS)


def _others_cores(record: RunRecord) -> float:
    return float(record.facts[OTHERS_CORES])


def _late_ms(record: RunRecord) -> float:
    """Of the request that was sent latest; warm-up and backlogs, which have no times, apart."""
    open_loop = {stream.name for stream in record.streams if stream.is_open_loop}
    return max(
        (
            1e3 * (request.sent_s - request.scheduled_s)
            for request in record.requests
            if request.stream in open_loop and request.sent_s is not None
            if 0.0 <= request.scheduled_s < record.duration_s
        ),
        default=0.0,
    )
