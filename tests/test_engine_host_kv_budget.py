"""Two models whose offloaded requests share the host's memory: right tokens while it moves."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_builders import GREEDY, is_any_wrong, make_model_settings, make_request, run_all
from host_attention_builders import until
from oracle import Oracle
from piggyback_builders import ARCHITECTURES

from cpu_attn.host import HostKvPool, shared_memory
from omniserve.devices.device import Device, open_device
from omniserve.engine.core import Engine
from omniserve.engine.kv_sharing import KvSharing
from omniserve.engine.model_news import Loaded, News, Refused, Unloaded
from omniserve.errors import ConfigError
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


def prompts(count: int, model: str, seed: int, num_tokens: int = 24) -> list[EngineRequest]:
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


def step_often(engine: Engine) -> None:
    """For all that there may have been no time for before the first step."""
    for _ in range(20):
        engine.step()


def kill_host(engine: Engine) -> None:
    link = engine._host
    assert link is not None and link.host.pid is not None
    os.kill(link.host.pid, signal.SIGKILL)


def test_tokens_equal_transformers_while_memory_goes_to_the_busy_model_and_back(
    engine: Engine, oracles: dict[str, Oracle]
) -> None:
    """Also where the host attention process is killed amid it."""
    for wave, busy in enumerate(("a", "b", "a", "ab")):
        most = dict.fromkeys("ab", 0)

        def look(step: int, wave: int = wave, most: dict[str, int] = most) -> None:
            if step % 8 == 0:
                check_memory(engine)
                for name in most:
                    most[name] = max(most[name], pool_of(engine, name).resident_bytes)
            if wave == 1 and step == 30:
                kill_host(engine)

        requests = [each for name in busy for each in prompts(8 // len(busy) + 1, name, wave)]
        ended = run_all(engine, requests, arrivals_per_step=2, after_step=look)
        for request in requests:
            found = ended[request.request_id].token_ids
            assert len(found) == request.sampling.max_tokens
            oracle = oracles[request.model]
            assert oracle.compare(request.prompt_token_ids, found).num_wrong == 0
        if len(busy) == 1:
            (idle,) = {*"ab"} - {busy}
            assert most[busy] > BUDGET * 3 // 4
            assert pool_of(engine, idle).resident_bytes <= BUDGET // 4
    link = engine._host
    assert link is not None and link.host.counters.num_restarts == 1
    for name in "ab":
        share = share_of(engine, name)
        assert share.num_moves_in > 1 and share.num_moves_out > 0
        assert min(share.in_bytes, share.out_bytes) > BUDGET * 3 // 4
        stats = stats_of(engine, name).piggyback
        assert stats is not None and stats.num_tokens > 50 and stats.host_kv_used_bytes == 0


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_tokens_are_right_where_both_memories_are_shared_and_short(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], pipeline_depth: int
) -> None:
    """Latency-sensitive work of one model sends best-effort work of the other to the host."""
    settings = EngineSettings(
        DeviceSettings("cpu", 1, kv_bytes=500_000),
        tuple(model_of(path, max_resident_decodes=None) for path in checkpoints.values()),
        BUDGET,
    )
    device = replace(open_device(settings.device), pipeline_depth=pipeline_depth)
    with closing(Engine(settings, device=device)) as engine:
        engine.warm_up()
        rng = random.Random(pipeline_depth)
        requests = [
            replace(each, service_class="latency_sensitive", tier="interactive")
            if rng.random() < 0.3
            else each
            for seed in range(3)
            for name in "ab"
            for each in prompts(5, name, 20 + seed)
        ]

        def look(step: int) -> None:
            if step % 8 == 0:
                check_memory(engine)

        ended = run_all(engine, requests, arrivals_per_step=1, after_step=look)
        for request in requests:
            found = ended[request.request_id].token_ids
            assert len(found) == request.sampling.max_tokens
            oracle = oracles[request.model]
            assert oracle.compare(request.prompt_token_ids, found).num_wrong == 0
        offloads = [stats.piggyback.num_swaps_out for stats in engine.stats() if stats.piggyback]
        assert len(offloads) == 2 and sum(offloads) > 0
        assert all(share_of(engine, name).num_moves_in for name in "ab")


def test_a_model_that_goes_idle_gives_its_pages_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_s = [0.0]
    monkeypatch.setattr(engine.kv_sharing.host, "_clock", lambda: time.monotonic() + late_s[0])
    run_all(engine, prompts(8, "a", 7))
    assert pool_of(engine, "a").resident_bytes > BUDGET // 2
    late_s[0] += 2.0
    step_often(engine)
    stats = stats_of(engine, "a").piggyback
    assert stats is not None
    assert stats.host_kv_granted_bytes == stats.host_kv_cached_bytes > 0
    assert pool_of(engine, "a").resident_bytes <= stats.host_kv_granted_bytes
    late_s[0] += 100.0
    step_often(engine)
    assert [pool_of(engine, name).resident_bytes for name in "ab"] == [0, 0]


def test_pages_given_back_while_they_are_read_are_noticed(
    engine: Engine, oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutation: all blocks before those that were withdrawn go as well."""
    give_back = HostKvPool.give_back

    def give_back_too_much(self: HostKvPool, first: int, stop: int) -> None:
        give_back(self, 0, stop)

    monkeypatch.setattr(HostKvPool, "give_back", give_back_too_much)

    def is_noticed(seed: int) -> bool:
        requests = [*prompts(6, "a", seed), *prompts(6, "b", seed + 1)]
        return is_any_wrong(oracles, requests, run_all(engine, requests, arrivals_per_step=1))

    # Which blocks are in use as others go depends on when the host's results come.
    assert any(is_noticed(seed) for seed in range(11, 31, 2))


def settled(engine: Engine) -> list[News]:
    """Steps until nothing changes any more, and nobody is there."""
    news: list[News] = []
    end_s = time.monotonic() + 120.0
    while engine.is_changing or engine.has_unfinished:
        engine.step()
        engine.check_integrity()
        news += engine.take_news()
        assert time.monotonic() < end_s
        time.sleep(1e-4)
    return news


def step_until(engine: Engine, is_reached: Callable[[], bool]) -> None:
    def step() -> bool:
        engine.step()
        return is_reached()

    until(step)


def test_models_that_come_and_go_take_their_parts_and_give_them_back(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    with closing(make_sharing(model_of(checkpoints["a"], None))) as engine:
        engine.warm_up()
        arbiter = engine.kv_sharing.host
        assert arbiter.budget is not None
        floor_bytes = arbiter.budget.floor_bytes("a")
        assert BUDGET // 2 - 24_576 < floor_bytes <= BUDGET // 2
        assert [info.host_kv_floor_bytes for info in engine.models] == [floor_bytes]
        for _ in range(2):
            cut_off = prompts(6, "a", 3)
            for request in cut_off:
                engine.add(request)
            step_until(engine, lambda: granted_bytes(engine, "a") > BUDGET // 2)
            engine.begin_load(1, model_of(checkpoints["b"], 40_000))
            assert isinstance(settled(engine)[-1], Loaded)
            requests = prompts(3, "b", 4)
            ended = run_all(engine, requests, after_step=lambda step: check_memory(engine))
            for request in requests:
                found = ended[request.request_id].token_ids
                assert oracles["b"].compare(request.prompt_token_ids, found).num_wrong == 0
            assert share_of(engine, "b").num_moves_in > 0
            for request in prompts(4, "b", 5, num_tokens=50):
                engine.add(request)
            step_until(engine, lambda: granted_bytes(engine, "b") > 0)
            engine.begin_unload(2, "b")
            assert isinstance(settled(engine)[-1], Unloaded)
            assert arbiter.stats("b") is None
            assert arbiter.budget.common_bytes == BUDGET - floor_bytes
        engine.begin_load(3, model_of(checkpoints["b"], 300_000))
        (refused,) = settled(engine)
        assert isinstance(refused, Refused)
        assert "host.kv_bytes: 400000 bytes are less than all piggyback.host_kv_floor_bytes" in (
            refused.message
        )
        # Nor is anything kept for it on the device.
        assert arbiter.budget.common_bytes == BUDGET - floor_bytes


def test_the_floor_of_a_model_that_sleeps_is_lent_and_there_when_it_wakes(
    engine: Engine, checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    budget = engine.kv_sharing.host.budget
    assert budget is not None
    floors = {name: budget.floor_bytes(name) for name in "ab"}
    run_all(engine, prompts(4, "b", 31))
    engine.begin_sleep(1, "b")
    assert isinstance(settled(engine)[-1], Unloaded)
    run_all(engine, prompts(9, "a", 32), after_step=lambda step: check_memory(engine, "a"))
    assert pool_of(engine, "a").resident_bytes > BUDGET - floors["b"]
    engine.begin_load(2, model_of(checkpoints["b"]))
    assert isinstance(settled(engine)[-1], Loaded)
    assert {name: budget.floor_bytes(name) for name in "ab"} == floors
    requests = prompts(4, "b", 33)
    ended = run_all(engine, requests, after_step=lambda step: check_memory(engine))
    for request in requests:
        found = ended[request.request_id].token_ids
        assert oracles["b"].compare(request.prompt_token_ids, found).num_wrong == 0
    stats = stats_of(engine, "b").piggyback
    assert stats is not None and stats.num_tokens > 0


def test_a_floor_of_less_than_a_page_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"piggyback\.host_kv_floor_bytes: memory moves in units"):
        make_sharing(model_of(checkpoints["a"], 100))


def test_a_budget_is_refused_where_the_device_has_host_memory_page_locked() -> None:
    device = Device(torch.device("cuda", 0), "a device", pipeline_depth=2)
    with pytest.raises(ConfigError, match=r"^host\.kv_bytes: .* cuda device .* page-locked"):
        KvSharing(EngineSettings(DeviceSettings(), (), BUDGET), device)


def test_without_a_budget_pools_are_the_models_own(checkpoints: dict[str, Path]) -> None:
    with closing(make_sharing(model_of(checkpoints["a"], None), host_kv_bytes=None)) as engine:
        stats = stats_of(engine, "a")
        assert stats.host_kv_share is None and stats.piggyback is not None
        assert stats.piggyback.host_kv_granted_bytes == stats.piggyback.host_kv_total_bytes
        assert [info.host_kv_floor_bytes for info in engine.models] == [None]
