"""Simulates tiers, in a process of its own: `python -m omniserve.reload.forecast_process`.

The job comes on stdin, the forecast goes to stdout.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from math import ceil

import msgspec

from omniserve.errors import ConfigError
from omniserve.reload.forecast_messages import Forecast, ForecastJob, TierForecast
from omniserve.reload.replay import Replay

_SLICE_S = 5.0
"""Simulated time between two looks at the real one."""
_SHARE_OF_ARRIVALS = 0.7
"""Of the time there is; the rest is left to what then still runs."""
_LEAST_URGENT = 19


def forecast(job: ForecastJob, clock: Callable[[], float] = time.monotonic) -> Forecast:
    """Both simulations go forward side by side: where the time does not suffice, both end with the
    same arrival. Raises ConfigError where a model cannot be simulated."""
    started_s = clock()
    before = Replay(job, job.before, [(each, each.before) for each in job.requests if each.before])
    after = Replay(job, job.after, [(each, each.after) for each in job.requests if each.after])
    at_s = 0.0
    while at_s < job.duration_s and clock() - started_s < _SHARE_OF_ARRIVALS * job.limit_s:
        at_s = min(job.duration_s, at_s + _SLICE_S)
        for replay in (before, after):
            replay.run_to(at_s)
    for replay in (before, after):
        replay.close(at_s)
    end_s = at_s
    while clock() - started_s < job.limit_s:
        if not (before.has_open_requests or after.has_open_requests):
            break
        end_s += _SLICE_S
        for replay in (before, after):
            replay.run_to(end_s)
    outcomes = before.outcomes(), after.outcomes()
    return Forecast(
        tuple(
            TierForecast(name, *(each.get(name) for each in outcomes))
            for name in dict.fromkeys((*outcomes[0], *outcomes[1]))
        ),
        num_arrivals=max(before.num_arrived, after.num_arrived),
        arrivals_s=at_s,
    )


def main() -> int:
    """The exit status is 2 where a model cannot be simulated; stderr says why."""
    os.nice(_LEAST_URGENT)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=ForecastJob)
    # Whoever waits for the answer ends this process; if that died, this does.
    signal.alarm(ceil(2 * job.limit_s))
    try:
        answer = forecast(job)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
