"""Which requests are here, and which were refused."""

import asyncio

import pytest
from status_builders import make_standing

from omniserve.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    OmniServeError,
    Overloaded,
    QuotaExceeded,
    RequestCancelled,
    Unauthenticated,
)
from omniserve.status.request_board import MAX_REASON_CHARS, MAX_REFUSALS, RequestBoard


def test_requests_are_here_from_their_beginning_to_their_end() -> None:
    board = RequestBoard()
    first, second, third = (make_standing(name) for name in "abc")
    for request in (first, second, third):
        board.begin(request)
    board.end(second, None)
    assert [each.request_id for each in board.oldest()] == ["a", "c"]
    assert [each.request_id for each in board.oldest(at_most=1)] == ["a"]
    assert len(board) == 2
    board.end(first, RequestCancelled("gone"))
    board.end(first, None)
    board.end(third, asyncio.CancelledError())
    assert len(board) == 0 and board.refusals == []


def test_requests_of_the_same_id_are_different_requests() -> None:
    board = RequestBoard()
    first, second = make_standing("same"), make_standing("same")
    board.begin(first)
    board.begin(second)
    board.end(first, None)
    assert len(board) == 1


@pytest.mark.parametrize(
    ("error", "retry_after_s"),
    [
        (Overloaded("too much", 2.5), 2.5),
        (QuotaExceeded("too much of it", 3.0, quota="concurrent"), 3.0),
        (EngineUnavailable("restarting"), 1.0),
        (DeadlineExceeded("too late"), None),
        (InvalidRequest("n: no"), None),
    ],
)
def test_refusals_say_why_and_when_to_try_again(
    error: OmniServeError, retry_after_s: float | None
) -> None:
    board = RequestBoard(clock=lambda: 7.0)
    request = make_standing("r1")
    board.begin(request)
    board.end(request, error)
    (refused,) = board.refusals
    assert (refused.at_s, refused.reason) == (7.0, str(error))
    assert (refused.request_id, refused.model, refused.tier) == ("r1", "demo", "batch")
    assert (refused.tenant, refused.retry_after_s) == ("acme", retry_after_s)


@pytest.mark.parametrize(
    "error", [None, asyncio.CancelledError(), RequestCancelled("gone"), ValueError("a fault")]
)
def test_other_ends_are_no_refusals(error: BaseException | None) -> None:
    board = RequestBoard()
    request = make_standing()
    board.begin(request)
    board.end(request, error)
    assert board.refusals == []


def test_a_request_that_had_a_token_was_not_refused() -> None:
    board = RequestBoard()
    request = make_standing(num_output_tokens=1)
    board.begin(request)
    board.end(request, EngineUnavailable("the engine was lost"))
    assert board.refusals == []


def test_only_the_last_refusals_are_kept_and_their_texts_are_short() -> None:
    board = RequestBoard()
    for number in range(MAX_REFUSALS + 5):
        board.note_refusal(Unauthenticated(f"{number} " + "x" * 1000))
    refusals = board.refusals
    assert len(refusals) == MAX_REFUSALS
    assert refusals[0].reason.startswith(f"{MAX_REFUSALS + 4} x")
    assert refusals[-1].reason.startswith("5 x")
    assert all(len(each.reason) == MAX_REASON_CHARS for each in refusals)
