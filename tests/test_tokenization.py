"""The front's tokenizer against transformers' own, and what a broken file does."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from omniserve.errors import CheckpointError, InvalidRequest
from omniserve.tokenization import LONG_TEXT_CHARS, MAX_CHARS_PER_TOKEN, ModelTokenizer

TEXTS = ["Hello, world!", "  two  spaces\n\ttab", "Grüße, 世界 🙂", "x" * 300, "<|im_start|>user"]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> ModelTokenizer:
    return ModelTokenizer.load(tiny_checkpoint)


async def encode(tokenizer: ModelTokenizer, text: str, max_tokens: int = 10_000) -> tuple[int, ...]:
    return await tokenizer.encode(
        text, add_special_tokens=True, max_tokens=max_tokens, name="prompt"
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("text", TEXTS)
async def test_agrees_with_transformers(
    tokenizer: ModelTokenizer, tiny_checkpoint: Path, text: str
) -> None:
    oracle = AutoTokenizer.from_pretrained(tiny_checkpoint)
    token_ids = await encode(tokenizer, text)
    assert list(token_ids) == oracle(text)["input_ids"]
    for keep in (True, False):
        decoded = tokenizer.decode(token_ids, keep_special_tokens=keep)
        assert decoded == oracle.decode(list(token_ids), skip_special_tokens=not keep)


@pytest.mark.asyncio
@pytest.mark.parametrize("text", TEXTS[:3])
async def test_bytes_of_tokens_join_to_the_text(tokenizer: ModelTokenizer, text: str) -> None:
    token_ids = await encode(tokenizer, text)
    assert b"".join(map(tokenizer.token_bytes, token_ids)) == text.encode()


@pytest.mark.asyncio
async def test_part_of_a_character_is_written_as_bytes(tokenizer: ModelTokenizer) -> None:
    token_ids = await encode(tokenizer, "\U0001f9ff")
    assert len(token_ids) > 1
    assert tokenizer.token_text(token_ids[0]).startswith("\\xf0")


def test_special_and_absent_tokens_have_bytes(tokenizer: ModelTokenizer) -> None:
    (special,) = Tokenizer.encode(tokenizer._tokenizer, "<|im_end|>").ids
    assert tokenizer.token_bytes(special) == b"<|im_end|>"
    assert tokenizer.token_bytes(10_000_000) == b""


@pytest.mark.asyncio
async def test_long_text_on_a_thread_gives_the_same(tokenizer: ModelTokenizer) -> None:
    line = "All work and no play. "
    text = line * (LONG_TEXT_CHARS // len(line) + 2)
    assert len(text) > LONG_TEXT_CHARS
    assert tokenizer.decode(await encode(tokenizer, text)) == text


@pytest.mark.asyncio
async def test_refuses_hopelessly_long_text(tokenizer: ModelTokenizer) -> None:
    limit = 8 * MAX_CHARS_PER_TOKEN
    assert await encode(tokenizer, "a" * limit, max_tokens=8)
    with pytest.raises(InvalidRequest, match=f"^prompt: {limit + 1} characters .* 8 tokens"):
        await encode(tokenizer, "a" * (limit + 1), max_tokens=8)


@pytest.mark.asyncio
async def test_refuses_lone_surrogates(tokenizer: ModelTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        await encode(tokenizer, "\ud800")


def test_bytes_of_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "\u2581the": 1, "<0xE4>": 2, "cat": 3}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = ModelTokenizer.load(tmp_path)
    assert [loaded.token_bytes(token_id) for token_id in (1, 2, 3)] == [b" the", b"\xe4", b"cat"]


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = ModelTokenizer.load(tmp_path)
    assert loaded._encode("a a a a a", True, "prompt") == (1, 1, 1, 1, 1)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        ModelTokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', json.dumps({"model": {}})])
def test_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a usable tokenizer"):
        ModelTokenizer.load(tmp_path)
