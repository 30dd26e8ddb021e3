"""What tokenising costs a tenant, be the text taken or not."""

from dataclasses import replace
from pathlib import Path

import pytest
from service_builders import MAX_MODEL_LEN, complete, make_generation_request
from tenant_builders import make_tenant, make_tenanted_service

from omniserve.access.caller import Caller
from omniserve.config_listen import LimitsConfig
from omniserve.errors import InvalidRequest, QuotaExceeded
from omniserve.generation import GenerationRequest, Prompt
from omniserve.requests import SamplingParams
from omniserve.service import GenerationService

PER_MINUTE = 10_000
ACME = Caller("acme", is_known=True)
TOO_LONG = "a b c d " * MAX_MODEL_LEN


def make_service(
    checkpoint: Path, per_minute: int = PER_MINUTE, limits: LimitsConfig | None = None
) -> GenerationService:
    tenant = make_tenant("acme", quota={"input_tokens_per_minute": per_minute})
    return make_tenanted_service(checkpoint, tenant, limits=limits, clock=lambda: 100.0)


def request_of(prompt: Prompt, max_tokens: int = 5) -> GenerationRequest:
    request = make_generation_request(prompt, sampling=SamplingParams(max_tokens=max_tokens))
    return replace(request, caller=ACME)


def num_charged(service: GenerationService) -> float:
    (status,) = service.access.quotas.tenants_status()
    assert status.input_tokens_share is not None
    return round(status.input_tokens_share * PER_MINUTE)


@pytest.mark.asyncio
async def test_a_text_is_charged_once(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    await complete(service, request_of("Hello there"))
    token_ids = await service.texts.tokenize("demo", "Hello there")
    assert num_charged(service) == len(token_ids)


@pytest.mark.asyncio
async def test_a_text_too_long_for_the_model_is_charged(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    with pytest.raises(InvalidRequest, match="tokens are too long") as refused:
        await service.start(request_of(TOO_LONG))
    assert num_charged(service) == int(str(refused.value).split()[1])


@pytest.mark.asyncio
@pytest.mark.parametrize("most", [None, 1])
async def test_a_text_refused_for_another_reason_is_charged(
    tiny_checkpoint: Path, most: int | None
) -> None:
    service = make_service(tiny_checkpoint, limits=LimitsConfig(max_prompt_tokens=most))
    with pytest.raises(InvalidRequest):
        await service.start(request_of("Hello there", max_tokens=MAX_MODEL_LEN))
    assert num_charged(service) == len(await service.texts.tokenize("demo", "Hello there"))


@pytest.mark.asyncio
async def test_token_ids_too_many_cost_nothing(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    with pytest.raises(InvalidRequest):
        await service.start(request_of((5,) * MAX_MODEL_LEN))
    assert num_charged(service) == 0


@pytest.mark.asyncio
async def test_who_sent_too_much_is_refused_before_it_is_tokenised(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, per_minute=100)
    for _ in range(2):
        with pytest.raises((InvalidRequest, QuotaExceeded)) as refused:
            await service.start(request_of(TOO_LONG))
    assert isinstance(refused.value, QuotaExceeded)
    # A minute's worth at most, and one token has to be there.
    assert refused.value.retry_after_s == pytest.approx(0.6)
    with pytest.raises(QuotaExceeded):
        await service.texts.tokenize("demo", "Hello", ACME)


@pytest.mark.asyncio
async def test_tokenize_is_charged(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    token_ids = await service.texts.tokenize("demo", "Hello there", ACME)
    assert num_charged(service) == len(token_ids)
    with pytest.raises(InvalidRequest, match="tokens are too long") as refused:
        await service.texts.tokenize("demo", TOO_LONG, ACME)
    assert num_charged(service) == len(token_ids) + int(str(refused.value).split()[1])
