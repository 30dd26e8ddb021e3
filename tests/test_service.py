"""The generation service over an engine that follows a script."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from service_builders import (
    FIVE_TOKENS,
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    ScriptedEngine,
    complete,
    make_config,
    make_generation_request,
    make_service,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from omniserve.chat import ChatMessage
from omniserve.errors import (
    CheckpointError,
    EngineUnavailable,
    InvalidRequest,
    OmniServeError,
    UnknownModel,
)
from omniserve.generation import ChatPrompt, GenerationRequest, Prompt
from omniserve.metrics import Metrics
from omniserve.requests import SamplingParams
from omniserve.service import GenerationService


async def refusal(service: GenerationService, request: GenerationRequest) -> OmniServeError:
    with pytest.raises(OmniServeError) as refused:
        await service.start(request)
    return refused.value


@pytest.mark.asyncio
async def test_streams_what_the_engine_gives(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    request = make_generation_request(request_id="mine")
    async with await service.start(request) as stream:
        assert (stream.request_id, stream.model, stream.tier) == ("mine", "demo", "interactive")
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "0 1 2 3 4 "
    assert [token for chunk in chunks for token in chunk.token_ids] == [0, 1, 2, 3, 4]
    assert [chunk.finish_reason for chunk in chunks][-1] == "length"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.num_prompt_tokens == 3
    assert chunks[-1].usage.num_output_tokens == 5
    assert not engine.running


@pytest.mark.asyncio
async def test_every_prompt_gets_n_choices(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    request = make_generation_request((1, 2), (3,), n=3, sampling=replace(FIVE_TOKENS, seed=40))
    result = await complete(service, request)
    assert [choice.index for choice in result.choices] == list(range(6))
    assert {choice.text for choice in result.choices} == {"0 1 2 3 4 "}
    assert result.usage.num_prompt_tokens == 3
    assert result.usage.num_output_tokens == 30
    assert [sequence.prompt_token_ids for sequence in engine.started] == [(1, 2)] * 3 + [(3,)] * 3
    assert [sequence.sampling.seed for sequence in engine.started] == [40, 41, 42] * 2
    assert len({sequence.request_id for sequence in engine.started}) == 6


@pytest.mark.asyncio
async def test_one_client_id_may_run_twice_at_once(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    request = make_generation_request(request_id="same")
    await asyncio.gather(*(complete(service, request) for _ in range(3)))
    assert len({sequence.request_id for sequence in engine.started}) == 3
    assert all(sequence.request_id.startswith("same/") for sequence in engine.started)


@pytest.mark.asyncio
async def test_text_and_chat_become_tokens(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    chat = ChatPrompt((ChatMessage("user", "Hello"),))
    await complete(service, make_generation_request("Hello"))
    await complete(service, make_generation_request(chat))
    prompts: tuple[Prompt, ...] = ("Hello", chat)
    for prompt, sequence in zip(prompts, engine.started, strict=True):
        assert sequence.prompt_token_ids == await service.texts.tokenize("demo", prompt)
    text = service.texts.detokenize(
        "demo", engine.started[0].prompt_token_ids, keep_special_tokens=False
    )
    assert text == "Hello"
    assert len(engine.started[1].prompt_token_ids) > len(engine.started[0].prompt_token_ids)


@pytest.mark.asyncio
async def test_special_tokens_are_added_to_text_and_left_to_the_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "[UNK]": 1, "Hello": 2}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("<s> {{ messages[0].content }}")
    service = make_service(tmp_path)
    assert await service.texts.tokenize("demo", "Hello") == (0, 2)
    chat = ChatPrompt((ChatMessage("user", "Hello"),))
    assert await service.texts.tokenize("demo", chat) == (0, 2)


@pytest.mark.asyncio
async def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    chat = ChatPrompt((ChatMessage("user", "Hello"),))
    error = await refusal(make_service(tmp_path), make_generation_request(chat))
    assert "has no chat template" in str(error)


@pytest.mark.parametrize(
    ("default_tier", "asked", "expected"),
    [
        (None, None, "interactive"),
        (None, "", "interactive"),
        (None, "auto", "interactive"),
        ("batch", "default", "batch"),
        ("batch", None, "batch"),
        ("batch", "priority", "interactive"),
        ("voice", "flex", "batch"),
        (None, "voice", "voice"),
    ],
)
def test_tier_names(
    tiny_checkpoint: Path, default_tier: str | None, asked: str | None, expected: str
) -> None:
    service = make_service(tiny_checkpoint, default_tier=default_tier)
    assert service.tiers.resolve("demo", asked).name == expected


@pytest.mark.asyncio
async def test_tier_and_class_reach_the_engine(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    await complete(service, make_generation_request(tier="flex"))
    assert (engine.started[0].tier, engine.started[0].service_class) == ("batch", "best_effort")


def test_flex_needs_a_best_effort_tier(tiny_checkpoint: Path) -> None:
    config = make_config(tiny_checkpoint)
    config = config.model_copy(update={"tiers": config.tiers[:2]})
    service = GenerationService(config, ScriptedEngine(), Metrics())
    with pytest.raises(InvalidRequest, match="^tier: 'flex' is not served; allowed: interactive"):
        service.tiers.resolve("demo", "flex")
    with pytest.raises(InvalidRequest, match="voice, auto, default, priority$"):
        service.tiers.resolve("demo", "gold")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_", "kind", "param", "part"),
    [
        (
            make_generation_request(model="gone"),
            UnknownModel,
            None,
            "'gone' is not served; served: demo",
        ),
        (make_generation_request(model=""), InvalidRequest, "model", "served: demo"),
        (make_generation_request(tier="gold"), InvalidRequest, "tier", "'gold'"),
        (make_generation_request(""), InvalidRequest, "prompt", "is empty"),
        (make_generation_request(()), InvalidRequest, "prompt", "is empty"),
        (make_generation_request("a", ""), InvalidRequest, "prompt[1]", "is empty"),
        (
            make_generation_request((VOCAB_SIZE,)),
            InvalidRequest,
            "prompt",
            f"0 to {VOCAB_SIZE - 1}",
        ),
        (make_generation_request((-1,)), InvalidRequest, "prompt", "token id -1"),
        (
            make_generation_request((1,) * MAX_MODEL_LEN),
            InvalidRequest,
            "prompt",
            "256 tokens are too long",
        ),
        (make_generation_request("word " * 300), InvalidRequest, "prompt", "are too long"),
        (make_generation_request(ChatPrompt(())), InvalidRequest, "messages", "0 are not allowed"),
        (
            make_generation_request(ChatPrompt((ChatMessage("user", "word " * 3000),))),
            InvalidRequest,
            "messages",
            "are too long",
        ),
        (make_generation_request(sampling=SamplingParams(top_p=2)), InvalidRequest, "top_p", "2"),
        (make_generation_request(n=17), InvalidRequest, "n", "1 to 16"),
        (make_generation_request(*[(1,)] * 129), InvalidRequest, "prompt", "1 to 128"),
        (make_generation_request(*[(1,)] * 9, n=15), InvalidRequest, "n", "128 sequences"),
        (make_generation_request(request_id="x" * 129), InvalidRequest, "request_id", "128"),
        (make_generation_request(request_id="a\nb"), InvalidRequest, "request_id", "printable"),
    ],
)
async def test_refuses(
    tiny_checkpoint: Path,
    request_: GenerationRequest,
    kind: type[OmniServeError],
    param: str | None,
    part: str,
) -> None:
    engine = ScriptedEngine()
    error = await refusal(make_service(tiny_checkpoint, engine), request_)
    assert type(error) is kind
    assert part in str(error)
    assert getattr(error, "param", None) == param
    assert not engine.started


@pytest.mark.asyncio
async def test_output_limit_is_what_the_context_leaves(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine()
    service = make_service(tiny_checkpoint, engine)
    prompt = (1,) * 250
    unlimited = make_generation_request(prompt, sampling=SamplingParams())
    await complete(service, unlimited)
    await complete(service, replace(unlimited, default_max_tokens=16))
    await complete(service, replace(unlimited, default_max_tokens=2))
    await complete(service, make_generation_request(prompt, sampling=SamplingParams(max_tokens=6)))
    assert [sequence.sampling.max_tokens for sequence in engine.started] == [6, 6, 2, 6]
    error = await refusal(
        service, make_generation_request(prompt, sampling=SamplingParams(max_tokens=7))
    )
    assert str(error) == (
        "max_tokens: 7 tokens of output after 250 tokens of prompt are more than the model's "
        "context of 256; allowed: up to 6"
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("state", ["starting", "restarting", "failed"])
async def test_no_engine_is_unavailable(tiny_checkpoint: Path, state: str) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(ready=False, state=state))
    assert isinstance(await refusal(service, make_generation_request()), EngineUnavailable)
    assert isinstance(await refusal(service, make_generation_request(model="gone")), UnknownModel)
    assert (service.state, service.is_serving) == (state, False)


@pytest.mark.asyncio
async def test_draining_refuses_new_requests_only(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    async with await service.start(make_generation_request()) as stream:
        service.draining = True
        assert isinstance(await refusal(service, make_generation_request()), EngineUnavailable)
        assert len((await stream.result()).choices[0].token_ids) == 5
    assert (service.state, service.is_serving) == ("draining", False)


@pytest.mark.asyncio
async def test_status_tells_what_the_engine_tells(tiny_checkpoint: Path) -> None:
    now_s = 10.0
    service = make_service(tiny_checkpoint, ScriptedEngine(num_restarts=3), clock=lambda: now_s)
    now_s = 15.0
    status = service.status()
    assert (status.state, status.device, status.num_engine_restarts) == ("ready", "scripted", 3)
    assert status.uptime_s == 5.0


def test_a_checkpoint_without_tokenizer_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        make_service(tmp_path)
