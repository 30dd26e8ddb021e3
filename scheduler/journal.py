"""What was decided about each request, and why: for whoever asks why it waited."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from scheduler.timeline import Entry, Event, Reason

MAX_ENTRIES = 32_768
"""Of all requests together."""
MAX_ENTRIES_EACH = 64
MAX_ENDED = 8_192
"""Requests that have ended and are still known."""
_MIDDLE = MAX_ENTRIES_EACH // 2
_TAKE_TURNS = (Event.WAITS, Event.COMPUTED)
_NUM_TAKING_TURNS = 3
"""Chunks and waits take turns: among so many last entries of these, equal ones are one."""


class Journal:
    """The last events of the last requests, in the order in which they first happened.

    Its memory is bounded: requests that ended first make room, and of a long timeline the beginning
    and the end are kept.

    Whoever decides sets the clock first, that of the requests' arrivals.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waiting: dict[str, Entry] = {}
        """What each request that waits waits for; read only."""
        self._live: OrderedDict[str, list[Entry]] = OrderedDict()
        self._ended: OrderedDict[str, list[Entry]] = OrderedDict()
        self._num_entries = 0

    def advance(self, now_s: float) -> None:
        """What follows happens now; the clock never goes back."""
        if now_s > self.now_s:
            self.now_s = now_s

    def note(
        self, request_id: str, event: Event, reason: Reason = Reason.NONE, detail: str = ""
    ) -> None:
        """It happened now, and the request waits no longer."""
        self.go_on(request_id)
        self._append(request_id, event, reason, detail)

    def wait(self, request_id: str, reason: Reason, detail: str = "") -> None:
        """From now on the request waits for this reason, unless it does so already."""
        entry = self.waiting.get(request_id)
        if entry is not None:
            if entry.reason is reason:
                return
            entry.last_s = self.now_s
        self.waiting[request_id] = self._append(request_id, Event.WAITS, reason, detail)

    def waits_for(self, request_id: str, reason: Reason) -> bool:
        """Whether `wait` would change nothing: then its detail need not be written."""
        entry = self.waiting.get(request_id)
        return entry is not None and entry.reason is reason

    def go_on(self, request_id: str) -> None:
        """What the request waited for, if anything, is there."""
        entry = self.waiting.pop(request_id, None)
        if entry is not None:
            entry.last_s = self.now_s

    def end(
        self, request_id: str, event: Event, reason: Reason = Reason.NONE, detail: str = ""
    ) -> None:
        """The last that happens to the request; its id may be used anew."""
        self.note(request_id, event, reason, detail)
        self._ended[request_id] = self._live.pop(request_id)
        if len(self._ended) > MAX_ENDED:
            self._forget_first(self._ended)

    def timeline(self, request_id: str) -> tuple[Entry, ...] | None:
        """In order of `at_s`; None of a request that is not known, or not any more."""
        entries = self._live.get(request_id) or self._ended.get(request_id)
        if entries is None:
            return None
        waits = self.waiting.get(request_id)
        return tuple(
            replace(entry, last_s=self.now_s) if entry is waits else replace(entry)
            for entry in entries
        )

    def request_ids(self) -> Iterable[str]:
        """All that are known."""
        yield from self._ended
        yield from self._live

    def _append(self, request_id: str, event: Event, reason: Reason, detail: str) -> Entry:
        entries = self._live.get(request_id)
        if entries is not None:
            for entry in entries[: -_NUM_TAKING_TURNS - 1 : -1]:
                if entry.event is event and entry.reason is reason:
                    entry.last_s, entry.detail = self.now_s, detail
                    entry.times += 1
                    return entry
                if entry.event not in _TAKE_TURNS:
                    break
        while self._num_entries >= MAX_ENTRIES:
            self._forget_first(self._ended or self._live)
        # Its own may have been the first.
        entries = self._live.get(request_id)
        if entries is None:
            # One of that id that has ended makes room.
            self._num_entries -= len(self._ended.pop(request_id, ()))
            entries = self._live[request_id] = []
        entry = Entry(self.now_s, event, reason, detail, self.now_s)
        entries.append(entry)
        self._num_entries += 1
        if len(entries) > MAX_ENTRIES_EACH:
            _shorten(entries)
            self._num_entries -= 1
        return entry

    def _forget_first(self, known: OrderedDict[str, list[Entry]]) -> None:
        request_id, entries = known.popitem(last=False)
        self._num_entries -= len(entries)
        if known is self._live:
            self.waiting.pop(request_id, None)


def _shorten(entries: list[Entry]) -> None:
    """How it began and how it stands now tell more than what was in between."""
    dropped = entries.pop(_MIDDLE)
    middle = entries[_MIDDLE]
    if dropped.event is not Event.LEFT_OUT:
        dropped = replace(dropped, event=Event.LEFT_OUT, reason=Reason.NONE, detail="")
    dropped.times += middle.times
    dropped.last_s = middle.last_s
    entries[_MIDDLE] = dropped
