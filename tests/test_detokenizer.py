"""Streaming text equals text decoded at once, and stop strings never leak."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from omniserve.engine.detokenizer import StopStringFilter, TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))


def stream(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    text_stream = TextStream(tokenizer, prompt)
    return [text_stream.push(token_id) for token_id in ids]


@pytest.mark.parametrize(
    "text",
    [
        "plain words, one after the other",
        "naïve café – 東京 🎉👩‍👩‍👧",
        "\n\n  indented\ttabs",
        "a" * 50,
    ],
)
def test_pieces_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    prompt = tokenizer.encode("A prompt. ").ids
    pieces = stream(tokenizer, prompt, tokenizer.encode(text).ids)
    assert "".join(pieces) == text


def test_no_piece_holds_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🎉é東🎉").ids
    assert len(ids) > 4, "the characters are single tokens: this would show nothing"
    assert all("\ufffd" not in piece for piece in stream(tokenizer, [], ids))


@pytest.mark.parametrize("num_invalid", range(3, 12))
def test_a_character_after_many_invalid_bytes_stays_whole(
    tokenizer: Tokenizer, num_invalid: int
) -> None:
    """What never becomes a character is given out at some point, which may be inside one."""
    emoji = tokenizer.encode("🎉").ids
    ids = [emoji[1]] * num_invalid + emoji + tokenizer.encode(" end").ids
    assert len(emoji) == 4, "the character is fewer tokens: this would show nothing"
    assert "".join(stream(tokenizer, [], ids)) == tokenizer.decode(ids)


def test_an_unfinished_character_at_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok🎉").ids
    assert "".join(stream(tokenizer, [], ids[:-1])) == "ok"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_add_up_to_their_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also for token sequences that are not valid UTF-8, up to the unfinished end."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=60))
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    streamed = "".join(stream(tokenizer, [], ids))
    assert whole.startswith(streamed)
    assert whole == streamed or whole.endswith("\ufffd")


def naive_stop(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    """Looks for stop strings in all the text so far, after every piece."""
    text = ""
    for piece in pieces:
        text += piece
        hits = [(text.find(stop), stop) for stop in stops if stop in text]
        if hits:
            position, stop = min(hits, key=lambda hit: hit[0])
            return text[:position], stop
    return text, None


small_text = st.text(alphabet="ab", max_size=4)


@given(
    pieces=st.lists(small_text, max_size=12),
    stops=st.lists(
        st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3, unique=True
    ),
)
def test_stop_strings_across_pieces(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopStringFilter(stops)
    emitted, hit = "", None
    for piece in pieces:
        safe, hit = stop_filter.push(piece)
        emitted += safe
        if hit is not None:
            break
        assert not any(stop in emitted for stop in stops)
    if hit is None:
        emitted += stop_filter.flush()
    expected, expected_hit = naive_stop(pieces, stops)
    assert emitted == expected
    assert (hit is None) == (expected_hit is None)


def test_text_is_held_back_only_while_it_may_be_a_stop() -> None:
    stop_filter = StopStringFilter(["END"])
    assert stop_filter.push("say E") == ("say ", None)
    assert stop_filter.push("N") == ("", None)
    assert stop_filter.push("o") == ("ENo", None)
    assert stop_filter.push("EN") == ("", None)
    assert stop_filter.flush() == "EN"
