"""The engine behind the front under test: brief, and strict about what it is sent."""

import math
from collections.abc import AsyncGenerator
from pathlib import Path

from service_builders import MAX_MODEL_LEN, VOCAB_SIZE, ScriptedEngine, make_output

from fuzz.defects import Defect, check
from omniserve.messages import Submit, decode_to_engine, encode
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.synthetic.create import write_checkpoint

MAX_TOKENS = 3
"""Of any answer, however many were asked for."""
TIERS = ("interactive", "voice", "batch")


def make_engine() -> ScriptedEngine:
    return ScriptedEngine(_brief)


def make_checkpoint(directory: Path) -> Path:
    """Tokenizer and chat template of the model behind the front."""
    return write_checkpoint(directory / "tiny", arch="qwen3", preset="tiny")


async def _brief(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    check_request(request)
    num_tokens = min(request.sampling.max_tokens or 1, MAX_TOKENS)
    for place in range(num_tokens):
        yield make_output(request, place, num_tokens)


def check_request(request: EngineRequest) -> None:
    """What the front lets through has to be within every bound, and to survive the way."""
    _check_prompt(request)
    _check_numbers(request)
    sampling = request.sampling
    check(all(1 <= len(stop) <= 256 for stop in sampling.stop), "stop strings")
    check(all(0 <= each < VOCAB_SIZE for each in sampling.stop_token_ids), "stop token ids")
    for token_id, bias in sampling.logit_bias.items():
        check(0 <= token_id < VOCAB_SIZE and -100 <= bias <= 100, "logit bias")
    check(request.model == "demo" and request.tier in TIERS, "model or tier")
    check(len(request.tenant) <= 64 and request.tenant.isprintable(), "tenant")
    check(len(request.request_id) <= 200 and request.request_id.isprintable(), "request id")
    try:
        arrived = decode_to_engine(encode(Submit(request)))
    except Exception as error:
        raise Defect(f"the request cannot be sent on: {error!r}") from error
    check(isinstance(arrived, Submit) and arrived.request == request, "changed on the way")


def _check_prompt(request: EngineRequest) -> None:
    prompt = request.prompt_token_ids
    check(len(prompt) > 0, "an empty prompt")
    check(all(0 <= token_id < VOCAB_SIZE for token_id in prompt), "prompt token ids")
    max_tokens = request.sampling.max_tokens
    check(max_tokens is not None and max_tokens >= 1, "max_tokens")
    check(len(prompt) + (max_tokens or 0) <= MAX_MODEL_LEN, "longer than the context")


def _check_numbers(request: EngineRequest) -> None:
    sampling = request.sampling
    check(0 <= sampling.temperature <= 2, "temperature")
    check(0 < sampling.top_p <= 1, "top_p")
    check(0 <= sampling.top_k < VOCAB_SIZE, "top_k")
    check(0 <= sampling.min_p <= 1, "min_p")
    check(-2 <= sampling.presence_penalty <= 2, "presence_penalty")
    check(-2 <= sampling.frequency_penalty <= 2, "frequency_penalty")
    check(0 < sampling.repetition_penalty <= 10, "repetition_penalty")
    check(sampling.seed is None or -(2**63) <= sampling.seed < 2**63, "seed")
    check(sampling.logprobs is None or 0 <= sampling.logprobs <= 20, "logprobs")
    check(request.deadline_s is None or math.isfinite(request.deadline_s), "deadline")
