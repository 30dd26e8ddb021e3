"""gRPC clients against the daemon and its real engine."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from daemon_fixture import RunningDaemon
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from omniserve.api.grpc_server import SERVICES
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0


def make_request(text: str = "Hello", *, tier: str = "", **sampling: Any) -> pb.GenerateRequest:
    sampling = {"temperature": 0.0, "max_tokens": 8} | sampling
    return pb.GenerateRequest(model="demo", text=text, tier=tier, sampling=pb.Sampling(**sampling))


@pytest.fixture
def stub(daemon: RunningDaemon) -> Iterator[Any]:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        yield omniserve_pb2_grpc.InferenceStub(channel)


def complete(stub: Any, request: pb.GenerateRequest) -> pb.GenerateResult:
    result = stub.Complete(request, timeout=PATIENCE_S)
    assert isinstance(result, pb.GenerateResult)
    return result


def test_stream_and_answer_agree(stub: Any) -> None:
    request = make_request("Once upon a time", max_tokens=24, ignore_eos=True, logprobs=3)
    chunks = list(stub.Generate(request, timeout=PATIENCE_S))
    (choice,) = complete(stub, request).choices
    assert "".join(chunk.text for chunk in chunks) == choice.text
    assert [token for chunk in chunks for token in chunk.token_ids] == list(choice.token_ids)
    assert len(choice.token_ids) == 24
    assert chunks[-1].finish_reason == choice.finish_reason == "length"
    assert chunks[-1].usage.output_tokens == 24
    assert not any(chunk.HasField("usage") for chunk in chunks[:-1])


def test_greedy_logprobs_are_the_best_and_spell_the_text(stub: Any) -> None:
    request = make_request("Once upon a time", max_tokens=24, ignore_eos=True, logprobs=3)
    (choice,) = complete(stub, request).choices
    assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
    for entry in choice.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0].token_id == entry.token_id
        assert entry.top[0].logprob == pytest.approx(entry.logprob)
        assert entry.logprob <= 0
    spelled = b"".join(entry.token for entry in choice.logprobs).decode(errors="replace")
    assert spelled.startswith(choice.text.rstrip("\ufffd"))


def test_a_stop_string_ends_the_text_before_it(stub: Any) -> None:
    (whole,) = complete(stub, make_request(max_tokens=40, ignore_eos=True)).choices
    assert len(whole.text) > 10
    stop = whole.text[5:9]
    request = make_request(max_tokens=40, ignore_eos=True, stop=[stop])
    (choice,) = complete(stub, request).choices
    assert choice.text == whole.text[: whole.text.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.stop_reason.text == stop


def test_a_stop_token_ends_the_request(stub: Any) -> None:
    (whole,) = complete(stub, make_request(max_tokens=20, ignore_eos=True)).choices
    stop = whole.token_ids[6]
    request = make_request(max_tokens=20, ignore_eos=True, stop_token_ids=[stop])
    (choice,) = complete(stub, request).choices
    assert choice.finish_reason == "stop"
    assert choice.stop_reason.token_id == stop
    assert len(choice.token_ids) <= whole.token_ids[:].index(stop) + 1


def test_seeded_choices_differ_and_repeat(stub: Any) -> None:
    request = make_request(temperature=1.0, seed=7, n=3, max_tokens=12, ignore_eos=True)
    first, second = complete(stub, request), complete(stub, request)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3
    alone = make_request(temperature=1.0, seed=8, max_tokens=12, ignore_eos=True)
    assert complete(stub, alone).choices[0].text == texts[1]
    assert first.usage.output_tokens == 36


def test_text_tokens_and_chat_are_the_same_prompt(stub: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hi")])
    tokens = stub.Tokenize(pb.TokenizeRequest(model="demo", chat=chat), timeout=PATIENCE_S)
    detokenize = pb.DetokenizeRequest(
        model="demo", token_ids=tokens.token_ids, keep_special_tokens=True
    )
    text = stub.Detokenize(detokenize, timeout=PATIENCE_S).text
    assert "Hi" in text
    sampling = make_request(ignore_eos=True).sampling
    prompts = (
        {"chat": chat},
        {"text": text},
        {"token_ids": pb.TokenIds(ids=tokens.token_ids)},
    )
    answers = [
        complete(stub, pb.GenerateRequest(model="demo", sampling=sampling, **prompt))
        for prompt in prompts
    ]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert {answer.usage.prompt_tokens for answer in answers} == {len(tokens.token_ids)}


def test_models_and_tiers_are_listed(stub: Any) -> None:
    listed = stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)
    (model,) = listed.models
    assert (model.name, model.default_tier, model.dtype) == ("demo", "interactive", "float32")
    assert model.architecture == "Qwen3ForCausalLM"
    assert model.max_model_len > 100
    assert model.num_layers >= 1
    assert [tier.name for tier in listed.tiers] == ["interactive", "batch"]
    assert listed.tiers[0].ttft_ms == 2000
    assert not listed.tiers[1].HasField("ttft_ms")


def test_an_overlong_prompt_names_the_numbers(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        complete(stub, make_request("word " * 40_000))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_built_from_reflection_alone(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(SERVICES) <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName("omniserve.v1.Inference")
        method = service.methods_by_name["Generate"]
        request_class = message_factory.GetMessageClass(method.input_type)
        chunk_class: Any = message_factory.GetMessageClass(method.output_type)
        generate = channel.unary_stream(
            f"/{service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=chunk_class.FromString,
        )
        request = request_class(
            model="demo",
            text="Hello",
            sampling={"temperature": 0.0, "max_tokens": 5, "ignore_eos": True},
        )
        chunks = list(generate(request, timeout=PATIENCE_S))
        assert sum(len(chunk.token_ids) for chunk in chunks) == 5
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].usage.output_tokens == 5


def test_a_deadline_ends_a_request_in_the_engine(daemon: RunningDaemon, stub: Any) -> None:
    limit = stub.Tokenize(pb.TokenizeRequest(model="demo", text="Hello"), timeout=PATIENCE_S)
    num_tokens = limit.max_model_len - len(limit.token_ids)
    request = make_request(max_tokens=num_tokens, ignore_eos=True)
    request.deadline_ms = 50
    chunks = []
    with pytest.raises(grpc.RpcError) as failed:
        for chunk in stub.Generate(request, timeout=PATIENCE_S):
            chunks.append(chunk)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert sum(len(chunk.token_ids) for chunk in chunks) < num_tokens
    with grpc.insecure_channel(daemon.admin_target) as channel:
        admin = omniserve_pb2_grpc.AdminStub(channel)
        for status in admin.WatchStatus(pb.WatchStatusRequest(interval_ms=100), timeout=PATIENCE_S):
            if not any(status.models[0].running.values()):
                break
    # What comes next is served as ever.
    result = complete(stub, make_request())
    assert (result.tier, len(result.choices[0].token_ids)) == ("interactive", 8)
