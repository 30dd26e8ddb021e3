"""The journal: entries in order, repetitions together, memory bounded."""

from scheduler.journal import Event, Journal, Reason


def test_entries_are_in_order_and_repetitions_are_one() -> None:
    journal = Journal()
    journal.note("a", Event.ARRIVED)
    for at_s in (1.0, 2.0, 3.0):
        journal.now_s = at_s
        journal.note("a", Event.WAITS, Reason.MEMORY, f"{at_s:g} blocks")
    journal.note("a", Event.WAITS, Reason.TIME)
    timeline = journal.timeline("a")
    assert timeline is not None
    assert [(each.event, each.reason, each.times) for each in timeline] == [
        (Event.ARRIVED, Reason.NONE, 1),
        (Event.WAITS, Reason.MEMORY, 3),
        (Event.WAITS, Reason.TIME, 1),
    ]
    assert (timeline[1].at_s, timeline[1].last_s, timeline[1].detail) == (1.0, 3.0, "3 blocks")


def test_of_a_long_story_beginning_and_end_stay() -> None:
    journal = Journal()
    journal.note("a", Event.ARRIVED)
    for number in range(500):
        journal.note("a", Event.WAITS, Reason.TIME if number % 2 else Reason.MEMORY, f"{number}")
    timeline = journal.timeline("a")
    assert timeline is not None
    assert len(timeline) == 64
    assert timeline[0].event is Event.ARRIVED
    assert timeline[-1].detail == "499"


def test_the_oldest_requests_are_forgotten() -> None:
    journal = Journal()
    for number in range(5000):
        journal.note(f"{number}", Event.ARRIVED)
    assert journal.timeline("0") is None
    assert journal.timeline("4999") is not None
    assert sum(journal.timeline(f"{number}") is not None for number in range(5000)) == 4096
