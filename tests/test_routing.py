"""Which model answers a request: by name, by alias, by the default of its tier or its tenant."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_servers import serving
from http_client import COMPLETIONS, check_error, make_body, make_client
from service_builders import ScriptedEngine
from tenant_builders import bearer, hash_of_token

from omniserve.config import Config
from omniserve.metrics import Metrics
from omniserve.service import GenerationService
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.v1 import omniserve_pb2 as pb

OBJECTIVES = {"class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100}
NAMES = ("small", "large")


def make_service(checkpoint: Path) -> tuple[GenerationService, ScriptedEngine]:
    """acme may use both models and has `big` as its default; other may use `small` alone."""
    settings = tuple(ModelSettings(name, str(checkpoint)) for name in NAMES)
    engine = ScriptedEngine(settings=EngineSettings(DeviceSettings(), settings))
    config = Config.model_validate(
        {
            "models": [
                {"name": "small", "path": str(checkpoint), "aliases": ["mini", "gpt-4o-mini"]},
                {"name": "large", "path": str(checkpoint), "aliases": ["big"]},
            ],
            "tiers": [
                {"name": "plain", **OBJECTIVES},
                {"name": "quick", **OBJECTIVES, "default_model": "mini"},
                {"name": "slow", "class": "best_effort", "default_model": "large"},
            ],
            "tenants": [
                {
                    "name": "acme",
                    "token_sha256": hash_of_token("acme"),
                    "default_model": "big",
                },
                {"name": "other", "token_sha256": hash_of_token("other"), "models": ["small"]},
            ],
        }
    )
    return GenerationService(config, engine, Metrics()), engine


@pytest.mark.parametrize(
    ("model", "tier", "answers"),
    [
        ("small", "", "small"),
        ("gpt-4o-mini", "", "small"),
        ("big", "quick", "large"),
        ("", "quick", "small"),
        ("", "slow", "large"),
        ("", "plain", "large"),
        ("", "", "large"),
        ("", "flex", "large"),
    ],
)
@pytest.mark.asyncio
async def test_a_request_finds_its_model_over_both_protocols(
    model: str, tier: str, answers: str, tiny_checkpoint: Path
) -> None:
    service, engine = make_service(tiny_checkpoint)
    async with serving(service) as servers, make_client(servers.url) as http:
        message = pb.GenerateRequest(model=model, text="Hello", tier=tier)
        message.sampling.max_tokens = 2
        result = await servers.inference.Complete(message, metadata=tuple(bearer("acme").items()))
        assert result.model == answers
        headers = bearer("acme") | ({"x-omniserve-tier": tier} if tier else {})
        answer = await http.post(
            COMPLETIONS, json=make_body(COMPLETIONS, model=model), headers=headers
        )
        assert answer.json()["model"] == answers
    assert [request.model for request in engine.started] == [answers, answers]


@pytest.mark.asyncio
async def test_a_body_without_a_model_has_the_default_too(tiny_checkpoint: Path) -> None:
    service, _ = make_service(tiny_checkpoint)
    body = make_body(COMPLETIONS)
    del body["model"]
    async with serving(service) as servers, make_client(servers.url) as http:
        answer = await http.post(COMPLETIONS, json=body, headers=bearer("acme"))
        assert answer.json()["model"] == "large"
        refused = await http.post(COMPLETIONS, json=body, headers=bearer("other"))
        check_error(refused, 400, "model", "model: must be given; served: small")


@pytest.mark.asyncio
async def test_a_default_that_the_tenant_may_not_use_is_none(tiny_checkpoint: Path) -> None:
    service, _ = make_service(tiny_checkpoint)
    async with serving(service) as servers:
        request = pb.GenerateRequest(text="Hello", tier="slow")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await servers.inference.Complete(request, metadata=tuple(bearer("other").items()))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "model: must be given; served: small"


@pytest.mark.parametrize("model", ["large", "big"])
@pytest.mark.asyncio
async def test_an_alias_opens_nothing(model: str, tiny_checkpoint: Path) -> None:
    service, _ = make_service(tiny_checkpoint)
    async with serving(service) as servers:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await servers.inference.Tokenize(
                pb.TokenizeRequest(model=model, text="Hello"),
                metadata=tuple(bearer("other").items()),
            )
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert failed.value.details() == (f"model: {model!r} is not for tenant 'other'; allowed: small")


@pytest.mark.asyncio
async def test_aliases_are_listed_with_what_they_mean(tiny_checkpoint: Path) -> None:
    service, _ = make_service(tiny_checkpoint)
    async with serving(service) as servers, make_client(servers.url) as http:
        listed = await servers.inference.ListModels(
            pb.ListModelsRequest(), metadata=tuple(bearer("acme").items())
        )
        over_http = (await http.get("/v1/models", headers=bearer("other"))).json()["data"]
        one = (await http.get("/v1/models/big", headers=bearer("acme"))).json()
    aliases: dict[str, list[str]] = {each.name: list(each.aliases) for each in listed.models}
    assert aliases == {"small": ["mini", "gpt-4o-mini"], "large": ["big"]}
    roots: list[tuple[Any, Any]] = [(each["id"], each["root"]) for each in over_http]
    assert roots == [("small", "small"), ("mini", "small"), ("gpt-4o-mini", "small")]
    assert (one["id"], one["root"]) == ("big", "large")
