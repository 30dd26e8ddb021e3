"""The official OpenAI client against the daemon and its real engine."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from daemon_fixture import RunningDaemon
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 60.0
USER: Any = [{"role": "user", "content": "Tell me a story."}]
LONG: Any = {"ignore_eos": True}


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{daemon.http_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield client


def metric(daemon: RunningDaemon, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    text = httpx2.get(f"{daemon.http_url}/metrics", timeout=PATIENCE_S).text
    (family,) = [found for found in text_string_to_metric_families(text) if found.name == name]
    return sum(s.value for s in family.samples if labels.items() <= s.labels.items())


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "omniserve"


def test_chat_streamed_and_not_agree(client: OpenAI) -> None:
    options: Any = {"model": "demo", "messages": USER, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**options, extra_body=LONG)
    stream = client.chat.completions.create(
        **options, extra_body=LONG, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 20
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_completion_streamed_and_not_agree(client: OpenAI) -> None:
    options: Any = {"model": "demo", "prompt": "Once", "temperature": 0, "max_tokens": 20}
    whole = client.completions.create(**options, extra_body=LONG)
    chunks = list(client.completions.create(**options, extra_body=LONG, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert whole.usage is not None and whole.usage.completion_tokens == 20


def test_default_length_is_sixteen(client: OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="Once", extra_body=LONG)
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_several_prompts_and_choices(client: OpenAI) -> None:
    prompts = ["Once upon", "a time"]
    answer = client.completions.create(
        model="demo", prompt=prompts, n=2, temperature=0, max_tokens=6, extra_body=LONG
    )
    texts = [choice.text for choice in answer.choices]
    assert len(texts) == 4
    assert texts[0] == texts[1] and texts[2] == texts[3]
    for prompt, text in zip(prompts, texts[::2], strict=True):
        alone = client.completions.create(
            model="demo", prompt=prompt, temperature=0, max_tokens=6, extra_body=LONG
        )
        assert alone.choices[0].text == text


def test_chat_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=USER,
        temperature=0,
        max_tokens=10,
        logprobs=True,
        top_logprobs=4,
        extra_body=LONG,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 10
    for token in logprobs.content:
        assert len(token.top_logprobs) == 4
        best = token.top_logprobs[0]
        assert best.token == token.token
        assert best.logprob == pytest.approx(token.logprob)
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
    spelled = bytes(byte for token in logprobs.content for byte in token.bytes or ())
    content = answer.choices[0].message.content
    assert content is not None
    assert spelled.decode(errors="replace").startswith(content.rstrip("\ufffd"))


def test_completion_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="Once", temperature=0, max_tokens=5, logprobs=2, extra_body=LONG
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None and len(logprobs.tokens) == 5
    assert logprobs.token_logprobs is not None and max(logprobs.token_logprobs) <= 0


def test_stop_strings(client: OpenAI) -> None:
    options: Any = {"model": "demo", "prompt": "Once", "temperature": 0, "max_tokens": 40}
    whole = client.completions.create(**options, extra_body=LONG).choices[0].text
    stop = whole[6:9]
    for given in (stop, ["never-said", stop]):
        answer = client.completions.create(**options, stop=given, extra_body=LONG).choices[0]
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"


def test_seed_repeats(client: OpenAI) -> None:
    def text(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="demo", messages=USER, seed=seed, max_tokens=16, extra_body=LONG
        )
        return answer.choices[0].message.content

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_tiers(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": USER, "max_tokens": 2}
    for asked, served in (("flex", "batch"), ("priority", "interactive"), ("auto", "interactive")):
        tier: Any = asked
        answer = client.chat.completions.create(**options, service_tier=tier)
        assert answer.service_tier == served
    in_header: Any = client.chat.completions.create(
        **options, extra_headers={"x-omniserve-tier": "batch"}
    )
    assert in_header.service_tier == "batch"


def test_cancellation_frees_the_engine(client: OpenAI, daemon: RunningDaemon) -> None:
    # The counter tells an abort from a request that came to its end, as one may whose client was
    # held up before it left: then another one tells.
    assert any(is_cancelled_amid_its_tokens(client, daemon) for _ in range(10))
    wait_until(lambda: metric(daemon, "omniserve_running_requests") == 0)


def is_cancelled_amid_its_tokens(client: OpenAI, daemon: RunningDaemon) -> bool:
    """Whether a request that is left after its first text has ended by that."""
    num_ended = metric(daemon, "omniserve_requests")
    num_cancelled = metric(daemon, "omniserve_requests", outcome="cancelled")
    stream = client.chat.completions.create(
        model="demo", messages=USER, max_tokens=900, stream=True, extra_body=LONG
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    wait_until(lambda: metric(daemon, "omniserve_requests") > num_ended)
    return metric(daemon, "omniserve_requests", outcome="cancelled") == num_cancelled + 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_errors(client: OpenAI) -> None:
    options: Any = {"messages": USER, "max_tokens": 2}
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gone", **options)
    assert not_found.value.code == "model_not_found"
    for field, value, param in (
        ("temperature", 9, "temperature"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "tools"),
        ("max_tokens", 10**7, "max_tokens"),
        ("messages", [], "messages"),
        ("service_tier", "gold", "tier"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="demo", **options | {field: value})
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
