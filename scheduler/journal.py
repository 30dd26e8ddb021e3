"""What was decided about each request, and why: for whoever asks why it waited."""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

_MAX_REQUESTS = 4096
_MAX_ENTRIES = 64


class Event(Enum):
    """What happened to a request."""

    ARRIVED = "arrived"
    REFUSED = "refused"
    WAITS = "waits"
    ADMITTED = "admitted"
    COMPUTED = "computed"
    """Tokens of its prompt joined a step."""
    FIRST_TOKEN = "first token"
    PREEMPTED = "preempted"
    OFFLOADED = "offloaded"
    RETURNED = "returned"
    DEMOTED = "demoted"
    FINISHED = "finished"
    ABORTED = "aborted"


class Reason(Enum):
    """Why; most events need none."""

    NONE = ""
    QUEUE = "others are before it"
    TIME = "the step has no time left"
    TOKENS = "the step has no tokens left"
    MEMORY = "no room for its KV"
    EXPECTED_MEMORY = "its KV is not expected to find room later"
    SLOTS = "as many requests run as may"
    LANES = "no lane is free"
    OBJECTIVE = "its objective would be missed"
    LENGTH = "it has had the tokens that its tier gives in time"
    NO_ROOM_ON_DEVICE = "the device has no room for its KV"
    ROOM_ON_DEVICE = "the device has had room for its KV for a while"


@dataclass(slots=True)
class Entry:
    """One event; equal ones in a row are one entry."""

    at_s: float
    event: Event
    reason: Reason
    detail: str
    last_s: float
    """When it happened last."""
    times: int = 1


class Journal:
    """The last events of the last requests; its memory is bounded, and old entries make room."""

    def __init__(self) -> None:
        self.now_s = 0.0
        """On the clock of the requests' arrivals; whoever decides sets it first."""
        self._by_request: OrderedDict[str, list[Entry]] = OrderedDict()

    def note(
        self, request_id: str, event: Event, reason: Reason = Reason.NONE, detail: str = ""
    ) -> None:
        """It happened now."""
        entries = self._by_request.get(request_id)
        if entries is None:
            entries = self._by_request[request_id] = []
            if len(self._by_request) > _MAX_REQUESTS:
                self._by_request.popitem(last=False)
        last = entries[-1] if entries else None
        if last is not None and (last.event, last.reason) == (event, reason):
            last.last_s, last.detail, last.times = self.now_s, detail, last.times + 1
            return
        entries.append(Entry(self.now_s, event, reason, detail, self.now_s))
        if len(entries) > _MAX_ENTRIES:
            # How it began and how it stands now tell more than what was in between.
            del entries[_MAX_ENTRIES // 2]

    def timeline(self, request_id: str) -> tuple[Entry, ...] | None:
        """In order of time; None of a request that is not known, or not any more."""
        entries = self._by_request.get(request_id)
        return None if entries is None else tuple(entries)
