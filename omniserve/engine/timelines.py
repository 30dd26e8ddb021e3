"""What an engine decided about a client's request, out of what its schedulers noted."""

from collections.abc import Iterable

from omniserve.decision import Decision
from scheduler import Scheduler
from scheduler.timeline import Entry


def explain(schedulers: Iterable[Scheduler], request_id: str) -> tuple[Decision, ...]:
    """In order of time; empty where nothing is known, or not any more.

    The front calls the sequences of a request ID/NUMBER#INDEX. Clients may use an id again: the
    newest request of that name is meant.
    """
    newest, known = -1, list[tuple[int, tuple[Entry, ...]]]()
    for scheduler in schedulers:
        # A plain comparison first: there may be thousands of others.
        names = [name for name in scheduler.journal.request_ids() if name.startswith(request_id)]
        for name in names:
            client_id, number, index = _parse(name)
            if client_id != request_id or number < newest:
                continue
            if number > newest:
                newest, known = number, []
            known.append((index, scheduler.explain(name) or ()))
    decisions = [_decision(index, entry) for index, entries in known for entry in entries]
    return tuple(sorted(decisions, key=lambda each: each.at_s))


def _parse(name: str) -> tuple[str, int, int]:
    """Id, number and index; whoever uses an engine of its own may call requests as it likes."""
    client_id, _, rest = name.rpartition("/")
    number, _, index = rest.partition("#")
    if number.isdecimal() and index.isdecimal():
        return client_id, int(number), int(index)
    return name, 0, 0


def _decision(sequence: int, entry: Entry) -> Decision:
    return Decision(
        sequence,
        entry.at_s,
        entry.last_s,
        entry.times,
        entry.event.value,
        entry.reason.value,
        entry.detail,
    )
