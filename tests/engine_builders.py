"""Builders for engines, requests and runs of them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from oracle import Oracle

from omniserve.devices.device import open_device
from omniserve.engine.core import Engine
from omniserve.requests import (
    EngineRequest,
    FinishReason,
    SamplingParams,
    ServiceClassName,
    TokenLogprob,
)
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings

PATIENCE_S = 120.0
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=16)


def make_engine(
    *models: ModelSettings,
    poll_arrivals: Callable[[], None] | None = None,
    threads: int = 1,
    pipeline_depth: int = 1,
) -> Engine:
    """One thread by default: tiny layers gain nothing from more, and lose much under load."""
    settings = EngineSettings(DeviceSettings(kind="cpu", threads=threads), tuple(models))
    device = replace(open_device(settings.device), pipeline_depth=pipeline_depth)
    return Engine(settings, poll_arrivals=poll_arrivals, device=device)


def make_model_settings(
    path: Path,
    *,
    name: str = "tiny",
    device_kv_bytes: int = 4 << 20,
    block_size: int = 16,
    max_step_tokens: int = 64,
    max_running_requests: int = 32,
    best_effort_tokens_beside_ls: int = 32,
) -> ModelSettings:
    return ModelSettings(
        name=name,
        path=str(path),
        dtype="float32",
        device_kv_bytes=device_kv_bytes,
        block_size=block_size,
        max_step_tokens=max_step_tokens,
        max_running_requests=max_running_requests,
        best_effort_tokens_beside_ls=best_effort_tokens_beside_ls,
    )


def make_request(
    request_id: str,
    prompt: Sequence[int],
    sampling: SamplingParams = GREEDY,
    service_class: ServiceClassName = "latency_sensitive",
    model: str = "tiny",
) -> EngineRequest:
    tier = "interactive" if service_class == "latency_sensitive" else "batch"
    return EngineRequest(request_id, model, tuple(prompt), sampling, service_class, tier)


@dataclass
class Collected:
    """Everything that came back for one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0


def run_all(
    engine: Engine,
    requests: Iterable[EngineRequest],
    arrivals_per_step: int = 1000,
    after_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Collected]:
    """Feeds requests a few a step and runs the engine until all have ended."""
    waiting = list(requests)
    results = {request.request_id: Collected() for request in waiting}
    num_steps = 0
    last_output_s = time.monotonic()
    while waiting or engine.has_unfinished:
        for request in waiting[:arrivals_per_step]:
            engine.add(request)
        del waiting[:arrivals_per_step]
        for output in engine.step():
            last_output_s = time.monotonic()
            collected = results[output.request_id]
            assert collected.finish_reason is None, "output after the end"
            collected.token_ids += output.token_ids
            collected.text += output.text
            collected.logprobs += output.logprobs
            collected.finish_reason = output.finish_reason
            collected.stop_reason = output.stop_reason
            collected.num_cached_tokens = output.num_cached_tokens
        after_step(num_steps)
        num_steps += 1
        # Steps say nothing: where all is on the host, an engine looks there again and again.
        assert time.monotonic() < last_output_s + PATIENCE_S, "the engine makes no progress"
    return results


def is_any_wrong(
    oracles: Mapping[str, Oracle], requests: Iterable[EngineRequest], results: dict[str, Collected]
) -> bool:
    """Whether some token is not what its model's oracle says."""
    return any(
        oracles[each.model]
        .compare(each.prompt_token_ids, results[each.request_id].token_ids)
        .num_wrong
        for each in requests
    )
