"""Windows that other processes leave alone."""

from collections.abc import Awaitable, Callable

from omniserve.bench.run_record import RunRecord
from omniserve.others_meter import QUIET_CORES

OTHERS_CORES = "others_cores"
"""Fact of a window: cores that processes without a part in it used, on average."""


async def measure_undisturbed(
    measure: Callable[[], Awaitable[RunRecord]], max_tries: int, say: Callable[[str], None]
) -> RunRecord:
    """The first window during which others used no more than QUIET_CORES, of `max_tries`
    the quietest; `measure` leaves the fact OTHERS_CORES."""
    records: list[RunRecord] = []
    for _ in range(max_tries):
        records.append(await measure())
        used_cores = _others_cores(records[-1])
        if used_cores <= QUIET_CORES:
            break
        say(f"disturbed: other processes used {used_cores:.2f} cores meanwhile")
    return min(records, key=_others_cores)


def _others_cores(record: RunRecord) -> float:
    return float(record.facts[OTHERS_CORES])
