"""The journal: entries in order, repetitions together, waits closed, memory bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import journal as journal_module
from scheduler.journal import Journal
from scheduler.timeline import Entry, Event, Reason


def timeline(journal: Journal, request_id: str) -> tuple[Entry, ...]:
    entries = journal.timeline(request_id)
    assert entries is not None
    return entries


def words(journal: Journal, request_id: str) -> list[tuple[Event, Reason, int]]:
    return [(each.event, each.reason, each.times) for each in timeline(journal, request_id)]


def num_entries(journal: Journal) -> int:
    return sum(len(timeline(journal, request_id)) for request_id in journal.request_ids())


def test_entries_are_in_order_and_repetitions_are_one() -> None:
    journal = Journal()
    journal.note("a", Event.QUEUED)
    for at_s in (1.0, 2.0, 3.0):
        journal.advance(at_s)
        journal.note("a", Event.COMPUTED, Reason.TIME, f"{at_s:g} tokens")
    journal.note("a", Event.COMPUTED, Reason.TOKENS)
    assert words(journal, "a") == [
        (Event.QUEUED, Reason.NONE, 1),
        (Event.COMPUTED, Reason.TIME, 3),
        (Event.COMPUTED, Reason.TOKENS, 1),
    ]
    entry = timeline(journal, "a")[1]
    assert (entry.at_s, entry.last_s, entry.detail) == (1.0, 3.0, "3 tokens")


def test_entries_that_take_turns_are_one_each() -> None:
    journal = Journal()
    journal.note("a", Event.ADMITTED)
    for number in range(10):
        journal.advance(float(number))
        journal.note("a", Event.COMPUTED, Reason.TIME)
        journal.wait("a", Reason.TOKENS)
        journal.wait("a", Reason.TIME)
    assert words(journal, "a") == [
        (Event.ADMITTED, Reason.NONE, 1),
        (Event.COMPUTED, Reason.TIME, 10),
        (Event.WAITS, Reason.TOKENS, 10),
        (Event.WAITS, Reason.TIME, 10),
    ]
    journal.advance(20.0)
    assert [each.last_s for each in timeline(journal, "a")] == [0.0, 9.0, 9.0, 20.0]


def test_waiting_lasts_until_something_else_happens() -> None:
    journal = Journal()
    journal.wait("a", Reason.MEMORY, "first")
    for at_s in (1.0, 2.0):
        journal.advance(at_s)
        journal.wait("a", Reason.MEMORY, "not written")
    assert journal.waits_for("a", Reason.MEMORY) and not journal.waits_for("a", Reason.TIME)
    # Still waiting: up to now.
    assert timeline(journal, "a")[-1] == Entry(0.0, Event.WAITS, Reason.MEMORY, "first", 2.0)
    journal.advance(3.0)
    journal.wait("a", Reason.TIME)
    journal.advance(4.0)
    journal.note("a", Event.ADMITTED)
    journal.advance(9.0)
    spans = [(each.reason, each.at_s, each.last_s) for each in timeline(journal, "a")]
    assert spans == [
        (Reason.MEMORY, 0.0, 3.0),
        (Reason.TIME, 3.0, 4.0),
        (Reason.NONE, 4.0, 4.0),
    ]


def test_who_goes_on_and_waits_again_is_counted() -> None:
    journal = Journal()
    for at_s in (0.0, 2.0, 4.0):
        journal.advance(at_s)
        journal.wait("a", Reason.TOKENS)
        journal.advance(at_s + 1.0)
        journal.go_on("a")
    journal.go_on("nobody")
    (entry,) = timeline(journal, "a")
    assert (entry.times, entry.at_s, entry.last_s) == (3, 0.0, 5.0)
    assert not journal.waiting


def test_the_clock_never_goes_back() -> None:
    journal = Journal()
    journal.advance(5.0)
    journal.advance(3.0)
    journal.note("a", Event.QUEUED)
    assert timeline(journal, "a")[0].at_s == 5.0


def test_what_is_handed_out_stays_as_it_was() -> None:
    journal = Journal()
    journal.note("a", Event.COMPUTED)
    before = timeline(journal, "a")
    journal.note("a", Event.COMPUTED)
    assert before[0].times == 1


def test_an_id_may_be_used_again_and_the_newest_is_told() -> None:
    journal = Journal()
    for tokens in ("5", "7"):
        journal.note("a", Event.QUEUED)
        journal.end("a", Event.FINISHED, Reason.NONE, tokens)
    assert [each.event for each in timeline(journal, "a")] == [Event.QUEUED, Event.FINISHED]
    assert timeline(journal, "a")[-1].detail == "7"
    journal.note("a", Event.QUEUED)
    assert [each.event for each in timeline(journal, "a")] == [Event.QUEUED]


def test_of_a_long_story_beginning_and_end_stay() -> None:
    journal = Journal()
    journal.note("a", Event.QUEUED)
    for number in range(500):
        journal.advance(float(number))
        journal.note("a", Event.COMPUTED, list(Reason)[number % 5], f"{number}")
    entries = timeline(journal, "a")
    assert len(entries) == journal_module.MAX_ENTRIES_EACH
    assert entries[0].event is Event.QUEUED and entries[-1].detail == "499"
    (gap,) = [each for each in entries if each.event is Event.LEFT_OUT]
    # Nothing is lost from the count, and the gap lies where it lies.
    assert sum(each.times for each in entries) == 501
    place = entries.index(gap)
    assert entries[place - 1].last_s < gap.at_s < gap.last_s < entries[place + 1].at_s
    assert gap.times == 501 - (len(entries) - 1)


def test_requests_that_ended_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_ENTRIES", 10)
    journal = Journal()
    journal.note("lives", Event.QUEUED)
    for number in range(20):
        journal.note(f"{number}", Event.QUEUED)
        journal.end(f"{number}", Event.FINISHED)
    assert journal.timeline("0") is None
    assert journal.timeline("lives") is not None
    assert list(journal.request_ids()) == ["16", "17", "18", "19", "lives"]


def test_the_number_of_ended_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_ENDED", 3)
    journal = Journal()
    for number in range(10):
        journal.end(f"{number}", Event.REFUSED)
    assert list(journal.request_ids()) == ["7", "8", "9"]


def test_where_all_live_the_oldest_is_forgotten_and_may_still_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "MAX_ENTRIES", 3)
    journal = Journal()
    for name in "abcd":
        journal.wait(name, Reason.MEMORY)
    assert journal.timeline("a") is None and "a" not in journal.waiting
    journal.end("a", Event.FINISHED)
    assert [each.event for each in timeline(journal, "a")] == [Event.FINISHED]
    assert num_entries(journal) == 3


steps = st.lists(
    st.tuples(
        st.sampled_from(["note", "wait", "go_on", "end"]),
        st.sampled_from("abcdefgh"),
        st.sampled_from([Reason.TIME, Reason.TOKENS, Reason.MEMORY]),
        st.sampled_from([Event.COMPUTED, Event.PREEMPTED]),
        st.sampled_from([0.0, 1.0]),
    ),
    max_size=200,
)


@given(steps, st.integers(1, 40))
def test_whatever_happens_memory_is_bounded_and_time_goes_forward(
    happenings: list[tuple[str, str, Reason, Event, float]], max_entries: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "MAX_ENTRIES", max_entries)
        patch.setattr(journal_module, "MAX_ENTRIES_EACH", 6)
        patch.setattr(journal_module, "_MIDDLE", 3)
        patch.setattr(journal_module, "MAX_ENDED", 4)
        journal = Journal()
        for what, name, reason, event, passed_s in happenings:
            journal.advance(journal.now_s + passed_s)
            if what == "note":
                journal.note(name, event, reason)
            elif what == "wait":
                journal.wait(name, reason)
            elif what == "end":
                journal.end(name, Event.FINISHED)
            else:
                journal.go_on(name)
            assert num_entries(journal) <= max_entries
            waiting = {each for each in "abcdefgh" if each in journal.waiting}
            assert waiting == set(journal.waiting)
            for known in journal.request_ids():
                entries = timeline(journal, known)
                assert 1 <= len(entries) <= 6
                begun = [each.at_s for each in entries]
                assert begun == sorted(begun)
                assert all(each.at_s <= each.last_s <= journal.now_s for each in entries)
