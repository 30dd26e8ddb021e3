"""What the front itself did with requests: the part of a timeline that the engine cannot know."""

from collections import OrderedDict

from omniserve.decision import WHOLE_REQUEST, Decision

MAX_REQUESTS = 4096


class RequestNotes:
    """Of one request; there are few of them, whatever becomes of it."""

    def __init__(self) -> None:
        self._decisions: list[Decision] = []

    def add(self, at_s: float, event: str, reason: str = "", detail: str = "") -> None:
        self._decisions.append(Decision(WHOLE_REQUEST, at_s, at_s, 1, event, reason, detail))

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self._decisions)


class FrontNotes:
    """Of the last requests, by the ids that clients know; the newest of those that share one."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, RequestNotes] = OrderedDict()

    def begin(self, request_id: str) -> RequestNotes:
        """A request arrived; whatever is to be known of it is added to what is returned."""
        self._by_id.pop(request_id, None)
        notes = self._by_id[request_id] = RequestNotes()
        if len(self._by_id) > MAX_REQUESTS:
            self._by_id.popitem(last=False)
        return notes

    def of(self, request_id: str) -> tuple[Decision, ...]:
        """Empty where nothing is known, or not any more."""
        notes = self._by_id.get(request_id)
        return () if notes is None else notes.decisions
