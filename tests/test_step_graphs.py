"""Captured steps yield the tokens that plain transformers generates.

There is no accelerator here: a graph is a tape of torch's operators, which like a real one knows
nothing but the memory it was recorded on.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import GREEDY, Collected, make_model_settings, make_request, run_all
from host_attention_builders import make_model, make_settings
from host_pool_builders import make_pool
from oracle import Oracle
from step_graph_builders import (
    FailingCapture,
    LazyStream,
    TapedCapture,
    make_capturing_engine,
    use_accelerator_exchange,
)

from cpu_attn.element import Element
from cpu_attn.host import HostAttention
from omniserve.devices.sdpa import SdpaStaticDecodes
from omniserve.engine.core import Engine
from omniserve.engine.step_inputs import StepInputs
from omniserve.piggyback.accelerator_exchange import AcceleratorExchange
from omniserve.requests import EngineRequest
from omniserve.settings import ModelSettings, PiggybackSettings
from omniserve.synthetic.create import write_checkpoint

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 4, "head_dim": 32},
    "mistral": {"num_hidden_layers": 2, "sliding_window": 20},
    "qwen3_moe": {"num_hidden_layers": 2},
}
PATIENCE_S = 60.0
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
    compared = [
        oracle.compare(r.prompt_token_ids, results[r.request_id].token_ids) for r in requests
    ]
    assert sum(c.num_ties for c in compared) <= sum(c.num_tokens for c in compared) / 100
    return sum(c.num_wrong for c in compared)


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


def await_host(engine: Engine) -> None:
    """Until it has attended to every row that it was given."""
    host, until_s = engine._host, time.monotonic() + PATIENCE_S
    assert host is not None
    while (stats := engine.stats()[0].piggyback) is not None and stats.num_on_host:
        assert time.monotonic() < until_s, "the host does not end its work"
        time.sleep(1e-3)
        with torch.inference_mode():
            engine.runtime("tiny").poll()
        host.collect()


def shapes_of(engine: Engine) -> set[tuple[int, int]]:
    """Resident rows and lane width of every step that was recorded whole."""
    graphs = engine.runtime("tiny")._executor._graphs
    assert graphs is not None
    return {(shape.num_rows, shape.lane_width) for shape in graphs._whole.by_shape}


def test_lane_rows_ride_with_resident_rows_and_alone(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_accelerator_exchange(monkeypatch)
    requests = requests_for(16, best_effort_share=0.6)
    with opened(TapedCapture(), settings_of(checkpoints["llama"], PIGGYBACK)) as engine:
        # Else a slow host might have its rows ready once no others are left to ride with.
        run_all(engine, requests, arrivals_per_step=1, after_step=lambda _: await_host(engine))
        shapes = shapes_of(engine)
    assert any(rows and width for rows, width in shapes)
    assert any(not rows and width for rows, width in shapes)
    assert all(rows in (0, 1, 2, 4, 6) and width in (0, 4, 6) for rows, width in shapes)


def test_padding_writes_to_the_scratch_block_alone(checkpoints: dict[str, Path]) -> None:
    """Three sequences of a block each are padded to four rows."""
    with opened(TapedCapture(), settings_of(checkpoints["llama"])) as engine:
        cache = engine.runtime("tiny")._kv_pool.cache
        cache.fill_(float("nan"))
        sampling = replace(GREEDY, max_tokens=5)
        run_all(
            engine, [make_request(f"r{index}", [5, 6, 7 + index], sampling) for index in range(3)]
        )
        assert shapes_of(engine) == {(4, 0)}
        is_written = ~cache.isnan().flatten(2).all(dim=2).all(dim=0)
    assert is_written[-1], "no row was padding"
    assert int(is_written.sum()) == 4


def test_prompts_go_layer_by_layer(checkpoints: dict[str, Path]) -> None:
    capture, prompt = TapedCapture(), list(range(5, 25))
    with opened(capture, settings_of(checkpoints["llama"])) as engine:
        run_all(engine, [make_request("r", prompt, replace(GREEDY, max_tokens=1))])
        assert capture.num_replays == 0
        run_all(engine, [make_request("r", prompt, replace(GREEDY, max_tokens=4))])
    assert capture.num_replays == 3


def test_steps_that_may_be_parked_go_by_segments_of_a_layer(checkpoints: dict[str, Path]) -> None:
    capture, settings = TapedCapture(), settings_of(checkpoints["llama"])
    with opened(capture, settings, poll_arrivals=lambda: None) as engine:
        run_all(engine, [make_request("be", [5, 6, 7], service_class="best_effort")])
        assert capture.num_replays == 15 * 4, "four layers a token, but for the first of 16"
        assert not shapes_of(engine)
        run_all(engine, [make_request("ls", [5, 6, 7])])
        assert not shapes_of(engine), "what is there in segments runs through as well"
    assert capture.num_replays == 2 * 15 * 4


def test_a_model_that_is_alone_runs_latency_sensitive_decodes_as_one_graph(
    checkpoints: dict[str, Path],
) -> None:
    capture, settings = TapedCapture(), settings_of(checkpoints["llama"])
    with opened(capture, settings, poll_arrivals=lambda: None) as engine:
        run_all(engine, [make_request("ls", [5, 6, 7])])
        assert shapes_of(engine)
    assert capture.num_replays == 15


def test_several_binding_points_go_layer_by_layer(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_accelerator_exchange(monkeypatch)
    capture, requests = TapedCapture(), requests_for(4, best_effort_share=1)
    settings = settings_of(checkpoints["llama"], replace(PIGGYBACK, binding_points=2))
    with opened(capture, settings) as engine:
        results = run_all(engine, requests)
    assert wrong_tokens(oracles["llama"], requests, results) == 0
    assert capture.num_captures == 0


@pytest.mark.parametrize("best_effort_share", [0.0, 0.6])
def test_a_device_that_cannot_record_serves_layer_by_layer(
    checkpoints: dict[str, Path],
    oracles: dict[str, Oracle],
    best_effort_share: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the rows of the step were bound already."""
    use_accelerator_exchange(monkeypatch)
    capture, requests = FailingCapture(), requests_for(8, best_effort_share)
    with (
        caplog.at_level(logging.WARNING),
        opened(capture, settings_of(checkpoints["llama"], PIGGYBACK)) as engine,
    ):
        results = run_all(engine, requests, arrivals_per_step=2)
    assert wrong_tokens(oracles["llama"], requests, results) == 0
    assert capture.num_captures == 1
    assert [record.message for record in caplog.records] == ["graph_capture_failed"]


def test_warm_up_records_what_short_sequences_need(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_accelerator_exchange(monkeypatch)
    capture = TapedCapture()
    with opened(capture, settings_of(checkpoints["qwen3_moe"], PIGGYBACK)) as engine:
        engine.warm_up()
        num_captures = capture.num_captures
        assert shapes_of(engine) == {
            (rows, width) for rows in (0, 1, 2, 4, 6) for width in (0, 4, 6) if rows + width
        }
        requests = [
            make_request(f"r{index}", [5, 6, 7], replace(GREEDY, max_tokens=9), kind)  # type: ignore[arg-type]
            for index, kind in enumerate(["best_effort", "latency_sensitive"] * 4)
        ]
        run_all(engine, requests)
    assert capture.num_replays > 0
    assert capture.num_captures == num_captures


def stale_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes and positions stay those of the first step of a graph."""
    fill, filled = StepInputs.fill, set()

    def filling_once(self: StepInputs, *args: Any) -> None:
        if self not in filled:
            fill(self, *args)
        filled.add(self)

    monkeypatch.setattr(StepInputs, "fill", filling_once)


def stale_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident rows write and attend where padding does."""
    monkeypatch.setattr(SdpaStaticDecodes, "fill", lambda self, batch: None)


@pytest.mark.parametrize("mutate", [stale_inputs, stale_attention])
def test_a_graph_that_is_replayed_on_old_inputs_shows(
    checkpoints: dict[str, Path],
    oracles: dict[str, Oracle],
    mutate: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    requests = requests_for(6, best_effort_share=0)
    with opened(TapedCapture(), settings_of(checkpoints["llama"])) as engine:
        results = run_all(engine, requests, arrivals_per_step=2)
    assert wrong_tokens(oracles["llama"], requests, results) > 0


def test_what_is_nobodys_reads_as_zeros() -> None:
    """However often padding is written there, it does not grow from step to step."""
    pool = make_pool(Element.FLOAT32, num_blocks=1)
    host = HostAttention([make_model(pool)], make_settings())
    device = torch.device("cpu")
    exchange = AcceleratorExchange(
        host, 0, 8, torch.float32, device, LazyStream(), lambda lanes: None
    )
    q, k, v = torch.ones(3, 4, 16), torch.ones(3, 2, 16), torch.ones(3, 2, 16)
    lanes = torch.tensor([exchange.nobody, 5, exchange.nobody])
    exchange.stage(lanes, torch.ones(3, 8), q, k, v)
    residuals, outputs = exchange.join_lanes(lanes)
    assert residuals.sum(dim=1).tolist() == [0, 8, 0]
    assert not outputs.any()
    host.close()
    pool.close()
