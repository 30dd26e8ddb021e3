"""Prompts to token ids, where tokenizer and model do not agree."""

from pathlib import Path

import pytest

from omniserve.config import ModelConfig
from omniserve.errors import InvalidRequest
from omniserve.served_model import ServedModel
from omniserve.settings import ModelInfo


def make_info(vocab_size: int, max_model_len: int = 64) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        architecture="Qwen3ForCausalLM",
        dtype="float32",
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        kv_bytes_per_token=1,
        num_layers=2,
        device_kv_bytes=1,
        num_parameters=1,
        eos_token_ids=(),
    )


@pytest.fixture
def served(tiny_checkpoint: Path) -> ServedModel:
    return ServedModel.load(ModelConfig(name="tiny", path=str(tiny_checkpoint)))


@pytest.mark.asyncio
async def test_tokens_that_the_model_lacks_are_refused(served: ServedModel) -> None:
    token_ids = await served.token_ids("Hello there", make_info(512), "prompt")
    with pytest.raises(InvalidRequest, match="prompt"):
        await served.token_ids("Hello there", make_info(max(token_ids)), "prompt")


def test_more_tokens_than_a_context_holds_are_not_decoded(served: ServedModel) -> None:
    assert served.detokenize((40,) * 64, make_info(512), keep_special_tokens=False)
    with pytest.raises(InvalidRequest, match="65 tokens"):
        served.detokenize((40,) * 65, make_info(512), keep_special_tokens=False)
