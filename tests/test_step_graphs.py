"""Captured steps yield the tokens that plain transformers generates.

There is no accelerator here: a graph is a tape of torch's operators, which like a real one knows
nothing but the memory it was recorded on.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import GREEDY, Collected, make_model_settings, make_request, run_all
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from step_graph_builders import (
    FailingCapture,
    TapedCapture,
    make_capturing_engine,
    use_accelerator_exchange,
)

from omniserve.devices.sdpa import SdpaStaticDecodes
from omniserve.engine.core import Engine
from omniserve.engine.step_inputs import StepInputs
from omniserve.engine.step_shapes import lane_sizes, padded, row_sizes
from omniserve.requests import EngineRequest
from omniserve.settings import ModelSettings, PiggybackSettings
from omniserve.synthetic.create import write_checkpoint

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 4, "head_dim": 32},
    "mistral": {"num_hidden_layers": 2, "sliding_window": 20},
    "qwen3_moe": {"num_hidden_layers": 2},
}
BLOCK_SIZE = 16
PIGGYBACK = PiggybackSettings(
    host_kv_bytes=8 << 20,
    max_offloaded_requests=8,
    max_lane_rows=6,
    max_lane_rows_beside_ls=3,
    max_resident_decodes=0,
    when="always",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("graphs")
    return {
        arch: write_checkpoint(
            directory / arch, arch=arch, preset="tiny", seed=5, overrides=overrides
        )
        for arch, overrides in ARCHITECTURES.items()
    }


@pytest.fixture(scope="module")
def oracles(checkpoints: dict[str, Path]) -> dict[str, Oracle]:
    return {arch: Oracle(path) for arch, path in checkpoints.items()}


def settings_of(path: Path, piggyback: PiggybackSettings | None = None) -> ModelSettings:
    settings = make_model_settings(path, device_kv_bytes=1 << 20, max_running_requests=6)
    return replace(settings, max_model_len=112, piggyback=piggyback)


@contextmanager
def opened(capture: Any, *args: Any, **kwargs: Any) -> Iterator[Engine]:
    engine = make_capturing_engine(capture, *args, **kwargs)
    try:
        yield engine
    finally:
        engine.close()


def requests_for(count: int, best_effort_share: float, seed: int = 0) -> list[EngineRequest]:
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        prompt = [rng.randrange(5, 500) for _ in range(rng.choice([1, 3, 15, 17, 40]))]
        sampling = replace(GREEDY, max_tokens=rng.choice([2, 9, 24]))
        is_best_effort = rng.random() < best_effort_share
        kind: Any = "best_effort" if is_best_effort else "latency_sensitive"
        requests.append(make_request(f"r{index}", prompt, sampling, kind))
    return requests


def wrong_tokens(
    oracle: Oracle, requests: list[EngineRequest], results: dict[str, Collected]
) -> int:
    compared = [oracle.compare(r.prompt_token_ids, results[r.request_id].token_ids) for r in requests]
    assert sum(c.num_ties for c in compared) <= sum(c.num_tokens for c in compared) / 100
    return sum(c.num_wrong for c in compared)


@given(st.integers(1, 1000), st.data())
def test_sizes_hold_every_count_with_little_to_spare(most: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, most))
    for sizes, waste in ((row_sizes(most), 2), (lane_sizes(most), 4)):
        size = padded(count, sizes)
        assert size is not None
        assert count <= size <= min(most, max(waste * count, count + 3, waste))
        assert list(sizes) == sorted(set(sizes))
        assert padded(most + 1, sizes) is None


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decodes_equal_transformers(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], arch: str, pipeline_depth: int
) -> None:
    capture, requests = TapedCapture(), requests_for(12, best_effort_share=0.3)
    settings = settings_of(checkpoints[arch])
    with opened(capture, settings, pipeline_depth=pipeline_depth) as engine:
        results = run_all(engine, requests, arrivals_per_step=1)
        num_steps = engine.stats()[0].num_steps
    assert wrong_tokens(oracles[arch], requests, results) == 0
    assert num_steps / 3 < capture.num_replays < num_steps
    assert capture.num_captures < capture.num_replays / 2


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lane_rows_equal_transformers(
    checkpoints: dict[str, Path],
    oracles: dict[str, Oracle],
    arch: str,
    pipeline_depth: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_accelerator_exchange(monkeypatch)
    capture, requests = TapedCapture(), requests_for(16, best_effort_share=0.6)
    settings = settings_of(checkpoints[arch], PIGGYBACK)
    with opened(capture, settings, pipeline_depth=pipeline_depth) as engine:
        results = run_all(
            engine, requests, arrivals_per_step=1, after_step=lambda step: engine.check_integrity()
        )
        stats = engine.stats()[0].piggyback
    assert wrong_tokens(oracles[arch], requests, results) == 0
    assert stats is not None
    assert stats.num_rows_joined > 100
    assert capture.num_replays > 20
    assert (stats.num_on_host, stats.num_ready_rows, stats.residual_bytes) == (0, 0, 0)
