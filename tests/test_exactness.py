"""Every token of every request is what plain transformers generates, whatever happens around it.

The second half breaks the engine on purpose: a suite of exactness that passes there would prove
nothing.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import (
    GREEDY,
    Collected,
    make_engine,
    make_model_settings,
    make_request,
    run_all,
)
from oracle import Oracle

from omniserve.devices.device import Device
from omniserve.devices.sdpa import SdpaAttention
from omniserve.engine import model_runtime, sampler
from omniserve.engine.batch import BlockTables, StepBatch, build_batch
from omniserve.engine.core import Engine
from omniserve.engine.executor import Executor
from omniserve.requests import EngineRequest
from omniserve.synthetic.create import write_checkpoint

ARCHITECTURES = {
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": {"sliding_window": 40},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": {},
    "mixtral": {},
}
NUM_REQUESTS = 32
LONGEST = 240
BLOCK_SIZE = 16


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exact") / request.param
    overrides: Any = ARCHITECTURES[request.param]
    return write_checkpoint(
        directory, arch=request.param, preset="tiny", seed=3, overrides=overrides
    )


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exact") / "one"
    return write_checkpoint(directory, arch="qwen3", preset="tiny", seed=4)


def mixed_requests(count: int, seed: int = 0) -> list[EngineRequest]:
    """Short and long prompts, some with a common beginning, of both classes in turn."""
    rng = random.Random(seed)
    shared = [rng.randrange(5, 500) for _ in range(3 * BLOCK_SIZE + 5)]
    requests = []
    for index in range(count):
        length = rng.choice([1, 2, 15, 16, 17, 40, 90, 150])
        prompt = [rng.randrange(5, 500) for _ in range(length)]
        if index % 4 < 2:
            prompt = shared + prompt
        sampling = replace(GREEDY, max_tokens=rng.choice([4, 12, 24]))
        service_class = "latency_sensitive" if index % 2 else "best_effort"
        requests.append(make_request(f"r{index}", prompt, sampling, service_class))  # type: ignore[arg-type]
    return requests


def engine_under_pressure(path: Path, threads: int = 1) -> Engine:
    """A pool that a few requests fill, and steps too short for most prompts."""
    probe = make_engine(make_model_settings(path))
    kv_bytes = probe.models[0].kv_bytes_per_token * LONGEST * 2
    settings = make_model_settings(
        path,
        device_kv_bytes=kv_bytes,
        block_size=BLOCK_SIZE,
        max_step_tokens=56,
        best_effort_tokens_beside_ls=24,
    )
    return make_engine(settings, threads=threads)


def verdict(
    oracle: Oracle, requests: list[EngineRequest], results: dict[str, Collected]
) -> tuple[int, int, int]:
    """Tokens, ties and wrong tokens over all requests."""
    comparisons = [
        oracle.compare(r.prompt_token_ids, results[r.request_id].token_ids) for r in requests
    ]
    return (
        sum(c.num_tokens for c in comparisons),
        sum(c.num_ties for c in comparisons),
        sum(c.num_wrong for c in comparisons),
    )


def test_mixed_load_equals_transformers(checkpoint: Path) -> None:
    # One architecture also splits its work over threads, as a real CPU device does.
    engine = engine_under_pressure(checkpoint, threads=2 if checkpoint.name == "llama" else 1)
    requests = mixed_requests(NUM_REQUESTS)
    runtime = engine.runtime("tiny")
    results = run_all(
        engine,
        requests,
        arrivals_per_step=3,
        after_step=lambda step: runtime.scheduler.check_integrity(),
    )
    stats = engine.stats()[0]
    assert stats.num_preemptions > 0, "nothing was preempted: the load is too light"
    assert stats.num_cached_prompt_tokens > 0, "no prefix was hit"
    assert stats.kv_used_bytes == 0, "blocks are leaked"
    assert all(
        len(r.token_ids) == q.sampling.max_tokens
        for q, r in zip(requests, results.values(), strict=True)
    )
    num_tokens, num_ties, num_wrong = verdict(Oracle(checkpoint), requests, results)
    assert num_wrong == 0
    assert num_ties <= num_tokens / 1000


def test_plans_made_ahead_equal_transformers(one_checkpoint: Path) -> None:
    """Two plans in flight, as on an accelerator: tokens go from step to step on the device."""
    settings = make_model_settings(one_checkpoint, device_kv_bytes=800_000, max_step_tokens=56)
    engine = make_engine(settings, pipeline_depth=2)
    requests = mixed_requests(16, seed=1)
    results = run_all(engine, requests, arrivals_per_step=2)
    assert verdict(Oracle(one_checkpoint), requests, results)[2] == 0


def test_sdpa_backend_equals_transformers(
    one_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend of devices without a kernel of ours, with memory full of NaN to begin with."""

    def sdpa_over_nan(self: Device, kv_cache: torch.Tensor, windows: Any, num_heads: int) -> Any:
        kv_cache.fill_(float("nan"))
        return SdpaAttention(kv_cache, windows)

    monkeypatch.setattr(Device, "attention", sdpa_over_nan)
    engine = engine_under_pressure(one_checkpoint)
    requests = mixed_requests(12, seed=2)
    results = run_all(engine, requests, arrivals_per_step=3)
    assert verdict(Oracle(one_checkpoint), requests, results)[2] == 0


def test_latency_sensitive_work_overtakes_between_layers(one_checkpoint: Path) -> None:
    """A best-effort step is parked between layers, and both requests still get their tokens."""
    late = make_request("late", range(20, 40))
    arrivals = [late]
    engine: Engine

    def poll() -> None:
        if arrivals:
            engine.add(arrivals.pop())

    engine = make_engine(make_model_settings(one_checkpoint), poll_arrivals=poll)
    early = make_request("early", range(50, 110), service_class="best_effort")
    engine.add(early)
    tokens: dict[str, list[int]] = {"early": [], "late": []}
    order: list[str] = []
    while engine.has_unfinished:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            order.append(output.request_id)
    assert order[0] == "late", "the best-effort step was not interrupted"
    oracle = Oracle(one_checkpoint)
    for request in (early, late):
        assert oracle.compare(request.prompt_token_ids, tokens[request.request_id]).num_wrong == 0


def stale_block_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that a request gained after its first plan never reach the table."""

    def update(self: BlockTables, plan: Any) -> None:
        for rows in plan.rows:
            if rows.new_block_ids and rows.first_new_block == 0:
                self._ids[rows.slot, : len(rows.new_block_ids)] = rows.new_block_ids

    monkeypatch.setattr(BlockTables, "update", update)


def shifted_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode rows are rotated as if they stood one token further on."""

    def shifted(*args: Any) -> StepBatch:
        batch = build_batch(*args)
        positions = batch.positions.copy()
        positions[: batch.attention.num_decodes] += 1
        return replace(batch, positions=positions)

    monkeypatch.setattr("omniserve.engine.executor.build_batch", shifted)


def swapped_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two layers, the first two rows of every step change places."""
    advance = Executor.advance

    def swapping(self: Executor, cursor: Any, to_layer: int) -> None:
        advance(self, cursor, 1)
        if len(cursor.residual) > 1:
            order = np.arange(len(cursor.residual))
            order[:2] = [1, 0]
            cursor.residual = cursor.residual[torch.from_numpy(order)]
        advance(self, cursor, to_layer)

    monkeypatch.setattr(Executor, "advance", swapping)


def swapped_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled tokens go to the wrong requests."""
    sample = sampler.sample

    def rolled(logits: torch.Tensor, rows: Any) -> Any:
        sampled = sample(logits, rows)
        return replace(sampled, token_ids=sampled.token_ids.roll(1))

    monkeypatch.setattr(model_runtime, "sample", rolled)


def lost_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode sees one token less of its context."""

    def shorter(*args: Any) -> StepBatch:
        batch = build_batch(*args)
        lens = np.maximum(batch.attention.decode_context_lens - 1, 1)
        return replace(batch, attention=replace(batch.attention, decode_context_lens=lens))

    monkeypatch.setattr("omniserve.engine.executor.build_batch", shorter)


@pytest.mark.parametrize(
    "mutation", [stale_block_table, shifted_position, swapped_rows, swapped_samples, lost_key]
)
def test_a_broken_engine_is_found(
    one_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutation(monkeypatch)
    engine = engine_under_pressure(one_checkpoint)
    requests = mixed_requests(8, seed=5)
    results = run_all(engine, requests, arrivals_per_step=3)
    assert verdict(Oracle(one_checkpoint), requests, results)[2] > 0
