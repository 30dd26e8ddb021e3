"""The traffic of the demo: planned, repeatable, of the promised shape."""

from itertools import islice, pairwise

import pytest

from omniserve.demo.load import (
    CHAT_TOKENS,
    DOCUMENT_TOKENS,
    Document,
    chat_arrivals,
    documents,
)


def backlog(seed: int, number: int = 50) -> list[Document]:
    return list(islice(documents(seed), number))


def test_equal_seeds_give_equal_plans() -> None:
    assert chat_arrivals(3, 20, seed=7) == chat_arrivals(3, 20, seed=7)
    assert backlog(7) == backlog(7)


def test_other_seeds_give_other_plans() -> None:
    assert chat_arrivals(3, 20, seed=7) != chat_arrivals(3, 20, seed=8)
    assert backlog(7) != backlog(8)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short = chat_arrivals(3, 20, seed=1)
    assert chat_arrivals(3, 40, seed=1)[: len(short)] == short


def test_arrivals_are_poisson() -> None:
    times = [turn.at_s for turn in chat_arrivals(5, 2000, seed=3)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) > 0
    assert 0 < times[0]
    assert times[-1] < 2000
    mean = sum(gaps) / len(gaps)
    # 10,000 exponential gaps: mean and deviation are both 0.2 s, each within 5 %.
    assert mean == pytest.approx(0.2, rel=0.05)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(0.2, rel=0.05)


def test_lengths_are_as_promised() -> None:
    turns = chat_arrivals(10, 100, seed=0)
    assert {turn.max_tokens for turn in turns} == set(range(CHAT_TOKENS[0], CHAT_TOKENS[1] + 1))
    lengths = [document.max_tokens for document in backlog(0, 500)]
    assert DOCUMENT_TOKENS[0] <= min(lengths) < max(lengths) <= DOCUMENT_TOKENS[1]
    assert all("{" not in turn.question for turn in turns)


def test_documents_differ_from_their_first_words_on() -> None:
    """A shared beginning would be served from the prefix cache."""
    beginnings = [document.prompt[:12] for document in backlog(0)]
    assert len(set(beginnings)) == len(beginnings)
