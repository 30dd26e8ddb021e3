"""Two models whose offloaded requests share the host's memory: right tokens while it moves."""

import os
import random
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_model_settings, make_request, run_all
from oracle import Oracle
from piggyback_builders import ARCHITECTURES

from cpu_attn.host import HostKvPool, shared_memory
from omniserve.devices.device import open_device
from omniserve.engine.core import Engine
from omniserve.requests import EngineRequest
from omniserve.settings import (
    DeviceSettings,
    EngineSettings,
    KvShareStats,
    ModelSettings,
    ModelStats,
    PiggybackSettings,
)
from omniserve.synthetic.create import write_checkpoint

BUDGET = 400_000
MOST = 1 << 20
LONGEST = 112
FLOOR = 60_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("host_budget")
    return {
        name: write_checkpoint(
            directory / name, arch=arch, preset="tiny", seed=seed, overrides=ARCHITECTURES[arch]
        )
        for name, arch, seed in (("a", "qwen3", 1), ("b", "llama", 2))
    }


@pytest.fixture(scope="module")
def oracles(checkpoints: dict[str, Path]) -> dict[str, Oracle]:
    return {name: Oracle(path) for name, path in checkpoints.items()}


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of huge ones a small budget holds none."""
    monkeypatch.setattr(shared_memory, "huge_page_bytes", lambda: None)
    monkeypatch.setattr("omniserve.engine.kv_sharing.huge_page_bytes", lambda: None)


def model_of(
    path: Path, floor_bytes: int | None = FLOOR, max_resident_decodes: int | None = 0
) -> ModelSettings:
    settings = make_model_settings(path, name=path.name, device_kv_bytes=MOST)
    piggyback = PiggybackSettings(
        host_kv_bytes=MOST,
        host_kv_floor_bytes=floor_bytes,
        max_offloaded_requests=16,
        max_resident_decodes=max_resident_decodes,
        when="always",
    )
    return replace(settings, max_model_len=LONGEST, piggyback=piggyback)


def make_sharing(*models: ModelSettings, host_kv_bytes: int | None = BUDGET) -> Engine:
    device = DeviceSettings("cpu", 1)
    return Engine(EngineSettings(device, models, host_kv_bytes), device=open_device(device))


@pytest.fixture
def engine(checkpoints: dict[str, Path]) -> Iterator[Engine]:
    with closing(make_sharing(*map(model_of, checkpoints.values()))) as engine:
        engine.warm_up()
        yield engine


def stats_of(engine: Engine, model: str) -> ModelStats:
    (stats,) = (each for each in engine.stats() if each.name == model)
    return stats


def share_of(engine: Engine, model: str) -> KvShareStats:
    share = stats_of(engine, model).host_kv_share
    assert share is not None
    return share


def granted_bytes(engine: Engine, model: str) -> int:
    piggyback = stats_of(engine, model).piggyback
    assert piggyback is not None
    return piggyback.host_kv_granted_bytes


def pool_of(engine: Engine, model: str) -> HostKvPool:
    piggyback = engine.runtime(model).piggyback
    assert piggyback is not None
    return piggyback._pool


def check_memory(engine: Engine, models: Iterable[str] = "ab") -> None:
    """The kernel's pages against the books."""
    engine.check_integrity()
    resident = {name: pool_of(engine, name).resident_bytes for name in models}
    for name, num_bytes in resident.items():
        assert num_bytes <= granted_bytes(engine, name)
    assert sum(resident.values()) <= BUDGET


def prompts(count: int, model: str, seed: int, num_tokens: int = 40) -> list[EngineRequest]:
    rng = random.Random(seed)
    sampling = replace(GREEDY, max_tokens=num_tokens)
    return [
        make_request(
            f"{model}{seed}.{index}",
            [rng.randrange(5, 500) for _ in range(rng.choice([15, 16, 17, 40, 60]))],
            sampling,
            "best_effort",
            model,
        )
        for index in range(count)
    ]


def check_tokens(
    oracles: dict[str, Oracle], requests: Iterable[EngineRequest], results: dict[str, list[int]]
) -> None:
    for request in requests:
        found = results[request.request_id]
        assert len(found) == request.sampling.max_tokens
        assert oracles[request.model].compare(request.prompt_token_ids, found).num_wrong == 0


def test_tokens_equal_transformers_while_memory_goes_to_the_busy_model_and_back(
    engine: Engine, oracles: dict[str, Oracle]
) -> None:
    """Also where the host attention process is killed amid it."""
    waves = [prompts(14, model, seed) for seed, model in enumerate("abab")]
    results: dict[str, list[int]] = {}
    most: list[dict[str, int]] = []
    for number, wave in enumerate(waves):
        # The first half of a wave goes on while the next one begins.
        late = waves[number - 1][7:] if number else []
        found = dict.fromkeys("ab", 0)

        def look(step: int, found: dict[str, int] = found, number: int = number) -> None:
            if step % 8 == 0:
                check_memory(engine)
                for name in found:
                    found[name] = max(found[name], pool_of(engine, name).resident_bytes)
            if number == 1 and step == 40:
                host = engine._host
                assert host is not None and host.host.pid is not None
                os.kill(host.host.pid, signal.SIGKILL)

        now = [*late, *(wave if number == 3 else wave[:7])]
        ended = run_all(engine, now, arrivals_per_step=2, after_step=look)
        results |= {name: collected.token_ids for name, collected in ended.items()}
        most.append(found)
        check_tokens(oracles, now, results)
    host = engine._host
    assert host is not None and host.host.counters.num_restarts == 1
    for name in "ab":
        share = share_of(engine, name)
        assert share.num_moves_in > 1 and share.num_moves_out > 1
        assert share.floor_bytes == FLOOR // 8192 * 8192 or share.floor_bytes <= FLOOR
        stats = stats_of(engine, name).piggyback
        assert stats is not None and stats.num_tokens > 100 and stats.host_kv_used_bytes == 0
