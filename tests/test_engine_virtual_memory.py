"""Two models on one KV budget of an accelerator: what is not granted has no memory behind it.

The addresses are this process's own, so an engine that touches a page that was given back, or
never granted, crashes as on CUDA.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_model_settings, make_request, run_all
from memory_driver_builders import PAGE_BYTES, HostDriver, PassedMark, host_bytes
from oracle import Oracle
from step_graph_builders import CapturingDevice, TapedCapture

from omniserve.devices.device import open_device
from omniserve.devices.device_pages import DevicePages
from omniserve.devices.elastic_memory import ElasticMemory
from omniserve.devices.virtual_memory import VirtualMemory
from omniserve.engine.core import Engine
from omniserve.errors import ConfigError
from omniserve.requests import EngineRequest
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.synthetic.create import write_checkpoint

KV_BYTES = 700_000


@dataclass(frozen=True)
class VirtualDevice(CapturingDevice):
    """A CPU device with graphs and with memory like an accelerator's."""

    def elastic_page_bytes(self) -> int:
        return PAGE_BYTES

    def elastic_memory(self, num_bytes: int) -> ElasticMemory:
        assert self.kv_pages is not None
        return VirtualMemory(self.kv_pages, num_bytes, PassedMark, host_bytes)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("virtual")
    return {
        "a": write_checkpoint(directory / "a", arch="qwen3", preset="tiny", seed=1),
        "b": write_checkpoint(directory / "b", arch="llama", preset="tiny", seed=2),
    }


def model_of(path: Path) -> ModelSettings:
    settings = make_model_settings(path, name=path.name, device_kv_bytes=1 << 20)
    return replace(settings, max_model_len=240)


@contextmanager
def opened(
    driver: HostDriver, capture: TapedCapture, *models: ModelSettings, pipeline_depth: int
) -> Iterator[Engine]:
    settings = EngineSettings(DeviceSettings("cpu", 1, KV_BYTES), models)
    torch_device = open_device(settings.device).torch_device
    pages = DevicePages(driver)
    pages.create(KV_BYTES // PAGE_BYTES)
    device = VirtualDevice(torch_device, "virtual", pipeline_depth, pages, capture)
    engine = Engine(settings, poll_arrivals=lambda: None, device=device)
    try:
        yield engine
    finally:
        engine.close()


def tides(count: int) -> list[EngineRequest]:
    """Load that is now on the one model and now on the other, of both classes."""
    rng = random.Random(count)
    requests = []
    for index in range(count):
        prompt = [rng.randrange(5, 500) for _ in range(rng.choice([1, 16, 17, 40, 150]))]
        sampling = replace(GREEDY, max_tokens=rng.choice([4, 12, 40]))
        service_class = "latency_sensitive" if rng.random() < 0.4 else "best_effort"
        model = "ab"[(index // 8) % 2]
        requests.append(make_request(f"r{index}", prompt, sampling, service_class, model))  # type: ignore[arg-type]
    return requests


def test_tokens_equal_transformers_and_nothing_else_is_touched(
    checkpoints: dict[str, Path],
) -> None:
    """With captured graphs, whose padding writes to blocks that are always there."""
    driver, capture = HostDriver(), TapedCapture()
    models = [model_of(path) for path in checkpoints.values()]
    requests = tides(32)
    with opened(driver, capture, *models, pipeline_depth=2) as engine:
        num_kept = len(driver.handles) - KV_BYTES // PAGE_BYTES
        results = run_all(
            engine, requests, arrivals_per_step=1, after_step=lambda step: engine.check_integrity()
        )
        shares = [each.kv_share for each in engine.stats()]
    assert num_kept > 0, "the scratch blocks of both"
    assert all(share is not None and share.num_moves_out > 3 for share in shares)
    assert capture.num_replays > 0
    for name, path in checkpoints.items():
        oracle = Oracle(path)
        for request in requests:
            if request.model == name:
                found = results[request.request_id].token_ids
                assert len(found) == request.sampling.max_tokens
                assert oracle.compare(request.prompt_token_ids, found).num_wrong == 0
    assert not driver.mappings and not driver.reservations, "it is closed"
    assert len(driver.handles) == KV_BYTES // PAGE_BYTES


def test_memory_that_the_driver_does_not_map_is_not_granted_and_everything_ends(
    checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    driver = HostDriver()
    models = [model_of(path) for path in checkpoints.values()]
    requests = tides(16)

    def after_step(step: int) -> None:
        engine.check_integrity()
        if step % 3 == 0:
            driver.fails_at = step % 5

    with (
        caplog.at_level(logging.WARNING),
        opened(driver, TapedCapture(), *models, pipeline_depth=1) as engine,
    ):
        results = run_all(engine, requests, arrivals_per_step=1, after_step=after_step)
    assert "kv_not_granted" in {record.message for record in caplog.records}
    oracle = Oracle(checkpoints["a"])
    for request in requests:
        found = results[request.request_id].token_ids
        assert len(found) == request.sampling.max_tokens
        if request.model == "a":
            assert oracle.compare(request.prompt_token_ids, found).num_wrong == 0
    assert not driver.mappings and not driver.reservations


def test_a_model_that_the_device_has_no_scratch_memory_for_is_refused(
    checkpoints: dict[str, Path],
) -> None:
    driver = HostDriver(num_pages=KV_BYTES // PAGE_BYTES + 1)
    with (
        pytest.raises(ConfigError, match=r"^models\.a\.device_kv_bytes: the cpu device cannot"),
        opened(driver, TapedCapture(), model_of(checkpoints["a"]), pipeline_depth=1),
    ):
        pass
