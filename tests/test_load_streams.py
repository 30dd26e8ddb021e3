"""What is sent when, before anything is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_builders import batch_stream, chat_stream

from omniserve.bench.load.prompts import Prompts
from omniserve.bench.load.streams import arrivals, backlog, sent_lengths
from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS, TraceRequest

BLOCK = PREFIX_BLOCK_TOKENS


def test_a_trace_begins_with_the_warm_up_and_ends_with_the_measured_part() -> None:
    timed = arrivals(chat_stream([0.0, 1.5, 2.0, 5.0, 5.9, 6.0, 7.0]), duration_s=4, warm_up_s=2)
    assert [at_s for at_s, _ in timed] == pytest.approx([-2.0, -0.5, 0.0, 3.0, 3.9])
    assert [request.arrival_s for _, request in timed] == [0.0, 1.5, 2.0, 5.0, 5.9]


def test_a_backlog_has_no_end() -> None:
    stream = batch_stream(2)
    taken = list(itertools.islice(backlog(stream), 5))
    assert [request.prompt_tokens for request in taken] == [5, 7, 5, 7, 5]


@given(
    st.integers(1, 300),
    st.integers(0, 300),
    st.one_of(st.none(), st.integers(min_value=2, max_value=200)),
)
def test_lengths_fit_the_model_and_change_only_where_they_must(
    prompt_tokens: int, output_tokens: int, max_model_len: int | None
) -> None:
    sent = sent_lengths(TraceRequest(0, prompt_tokens, output_tokens), max_model_len)
    wanted = (prompt_tokens, max(1, output_tokens))
    assert 1 <= sent.prompt_tokens <= wanted[0]
    assert 1 <= sent.max_tokens <= wanted[1]
    if max_model_len is None or sum(wanted) <= max_model_len:
        assert (sent.prompt_tokens, sent.max_tokens) == wanted
    else:
        # As much as fits: something was cut, and nothing was cut that had room.
        assert sent.prompt_tokens + sent.max_tokens <= max_model_len
        assert sent.max_tokens == min(wanted[1], max(1, max_model_len // 2))
        assert sent.prompt_tokens == min(wanted[0], max_model_len - sent.max_tokens)


def test_equal_arguments_give_equal_tokens_and_others_do_not() -> None:
    prompts = Prompts(1, "chat", 1000)
    first = prompts.token_ids(0, 50)
    assert first == Prompts(1, "chat", 1000).token_ids(0, 50)
    others = [
        prompts.token_ids(1, 50),
        Prompts(2, "chat", 1000).token_ids(0, 50),
        Prompts(1, "batch", 1000).token_ids(0, 50),
    ]
    assert len({first, *others}) == 4
    assert all(0 <= token < 1000 for token in first)
    assert {type(token) for token in first} == {int}


def test_a_small_vocabulary_is_all_there_is() -> None:
    assert set(Prompts(0, "chat", 3).token_ids(0, 200)) == {0, 1, 2}


def test_equal_prefixes_have_equal_tokens_across_requests_and_streams() -> None:
    one = Prompts(1, "chat", 1000).token_ids(0, 2 * BLOCK + 100, (7, 8, -9))
    two = Prompts(1, "batch", 1000).token_ids(5, 2 * BLOCK + 200, (7, 8, 10))
    assert len(one) == 2 * BLOCK + 100
    assert len(two) == 2 * BLOCK + 200
    assert one[: 2 * BLOCK] == two[: 2 * BLOCK]
    assert one[2 * BLOCK :] != two[2 * BLOCK : 2 * BLOCK + 100]
    assert one[:BLOCK] != one[BLOCK : 2 * BLOCK]
    # 9 and -9 are two hashes.
    assert one[2 * BLOCK :] != Prompts(1, "chat", 1000).token_ids(0, 100, (9,))


def test_a_prompt_longer_than_its_hashes_ends_like_no_other() -> None:
    prompts = Prompts(1, "chat", 1000)
    one = prompts.token_ids(0, BLOCK + 30, (7,))
    two = prompts.token_ids(1, BLOCK + 30, (7,))
    assert one[:BLOCK] == two[:BLOCK]
    assert one[BLOCK:] != two[BLOCK:]


def test_a_prompt_that_was_cut_keeps_the_beginning_of_its_prefix() -> None:
    prompts = Prompts(1, "chat", 1000)
    whole = prompts.token_ids(0, 3 * BLOCK, (7, 8, 9))
    assert prompts.token_ids(0, BLOCK + 10, (7, 8, 9)) == whole[: BLOCK + 10]
