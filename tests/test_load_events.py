"""Server-sent events, read for their tokens."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.bench.load.event_stream import EventStream
from omniserve.bench.load.target import RequestFailed

# What some call line breaks must not end a line of an event.
TEXT = "a\u2028b\u0085c\x1c"
CHOICE = {"index": 0, "text": TEXT, "finish_reason": None}


def body(*events: dict[str, Any], end: str = "data: [DONE]\n\n") -> bytes:
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n" for event in events]
    return (": a comment\n\n" + "".join(lines) + end).encode()


def counted(num_tokens: int, choices: int = 1) -> dict[str, Any]:
    return {"choices": [CHOICE] * choices, "usage": {"completion_tokens": num_tokens}}


def uncounted() -> dict[str, Any]:
    return {"choices": [CHOICE], "usage": None}


def fed(data: bytes, cuts: list[int] | None = None) -> tuple[list[int], EventStream]:
    told: list[int] = []
    events = EventStream(told.append)
    places = [0, *sorted(cuts or []), len(data)]
    for start, end in zip(places, places[1:], strict=False):
        events.feed(data[start:end])
    return told, events


COUNTED = body(counted(1), counted(2), counted(5), counted(5), counted(5, choices=0))


@given(st.lists(st.integers(0, len(COUNTED)), max_size=8))
def test_it_does_not_matter_where_the_body_is_cut(cuts: list[int]) -> None:
    told, events = fed(COUNTED, cuts)
    assert told == [1, 1, 3]
    assert events.total() == 5


def test_without_counts_an_event_is_a_token_until_the_end_says_better() -> None:
    told, events = fed(body(uncounted(), uncounted(), counted(7, choices=0)))
    assert told == [1, 1]
    assert events.total() == 7


def test_without_any_usage_events_are_what_there_is() -> None:
    told, events = fed(body({"choices": [CHOICE]}, {"choices": [CHOICE]}))
    assert (told, events.total()) == ([1, 1], 2)


def test_an_error_inside_the_stream_is_raised() -> None:
    with pytest.raises(RequestFailed, match="HTTP stream: the engine is gone"):
        fed(body(uncounted(), {"error": {"message": "the engine is gone", "type": "x"}}))


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(RequestFailed, match="an event cannot be read"):
        fed(b"data: {not json\n\n")


def test_a_line_without_an_end_is_refused() -> None:
    stream = EventStream(lambda num_tokens: None)
    with pytest.raises(RequestFailed, match="a line is longer than 1048576 bytes"):
        for _ in range(30):
            stream.feed(b"data: " + b"x" * 50_000)


def test_a_stream_that_is_cut_short_has_no_total() -> None:
    _, events = fed(body(counted(1), end=""))
    with pytest.raises(RequestFailed, match="ended without"):
        events.total()
