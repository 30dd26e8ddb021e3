"""One request after another through a target, and the count of all of them."""

import asyncio
import statistics
from collections import Counter, deque
from collections.abc import Callable

from omniserve.bench.load.plan import PlannedRequest
from omniserve.bench.load.progress import StreamProgress
from omniserve.bench.load.target import RequestFailed, RequestRejected, Target
from omniserve.bench.run_record import Outcome, RequestRecord

NUM_RECENT = 200
_MOST_TOO_MANY = 2
"""Times the tokens that were asked for: a server that goes on beyond them may never stop."""
"""Requests that a median on the display is of."""


class RequestRunner:
    """Runs requests of one stream; `records` holds every one that was sent."""

    def __init__(self, name: str, target: Target, now_s: Callable[[], float]) -> None:
        self._name = name
        self._target = target
        self.now_s = now_s
        self.records: list[RequestRecord] = []
        self._num_tokens = 0
        self._num_waiting = 0
        self._num_running = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._ttfts_s: deque[float] = deque(maxlen=NUM_RECENT)
        self._tpots_s: deque[float] = deque(maxlen=NUM_RECENT)

    async def run(self, planned: PlannedRequest) -> None:
        """Sends a request and fills its record; raises CancelledError alone."""
        record = planned.record
        times_s = record.token_times_s

        def note(num_tokens: int) -> None:
            at_s = round(self.now_s(), 6)
            if not times_s:
                self._num_waiting -= 1
                self._num_running += 1
                self._ttfts_s.append(at_s - record.scheduled_s)
            if len(times_s) + num_tokens > _MOST_TOO_MANY * record.max_tokens:
                raise RequestFailed(f"more tokens came than the {record.max_tokens} asked for")
            times_s.extend([at_s] * num_tokens)
            self._num_tokens += num_tokens

        self.records.append(record)
        self._num_waiting += 1
        record.sent_s = round(self.now_s(), 6)
        try:
            num_tokens = await self._target.send(planned.payload, note)
        except asyncio.CancelledError:
            self._end(record, "cut_off")
            raise
        except RequestRejected as error:
            self._end(record, "rejected", str(error))
        except RequestFailed as error:
            self._end(record, "failed", str(error))
        except Exception as error:
            # Whatever it is: a fault of the generator itself must not vanish in a task.
            self._end(record, "failed", f"{type(error).__name__}: {error}")
        else:
            self._finish(record, num_tokens)

    def progress(self, interval_s: float) -> StreamProgress:
        """How the stream stands; tokens per second are those since the last call."""
        num_tokens, self._num_tokens = self._num_tokens, 0
        return StreamProgress(
            name=self._name,
            num_running=self._num_running,
            num_waiting=self._num_waiting,
            num_done=self._outcomes["done"],
            num_failed=self._outcomes["failed"],
            num_rejected=self._outcomes["rejected"],
            ttft_p50_ms=_median_ms(self._ttfts_s),
            tpot_p50_ms=_median_ms(self._tpots_s),
            tokens_per_s=num_tokens / interval_s,
        )

    def _finish(self, record: RequestRecord, num_tokens: int) -> None:
        times_s = record.token_times_s
        if not times_s:
            self._end(record, "failed", "no token came")
            return
        if num_tokens not in (0, len(times_s)):
            record.token_times_s = _spread(times_s, num_tokens)
        if num_tokens != record.max_tokens:
            text = f"the answer has {num_tokens} tokens instead of {record.max_tokens}"
            self._end(record, "failed", text)
            return
        self._end(record, "done")
        if record.tpot_s is not None:
            self._tpots_s.append(record.tpot_s)

    def _end(self, record: RequestRecord, outcome: Outcome, error: str = "") -> None:
        record.ended_s = round(self.now_s(), 6)
        record.outcome, record.error = outcome, error
        self._outcomes[outcome] += 1
        if record.token_times_s:
            self._num_running -= 1
        else:
            self._num_waiting -= 1


def _spread(times_s: list[float], num_tokens: int) -> list[float]:
    """The true number of tokens, evenly over the times at which some came."""
    return [times_s[place * len(times_s) // num_tokens] for place in range(num_tokens)]


def _median_ms(values_s: deque[float]) -> float | None:
    return 1000 * statistics.median(values_s) if values_s else None
