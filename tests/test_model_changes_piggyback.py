"""Models that piggyback come to an engine that runs, and leave it with requests on the host."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_builders import make_engine
from oracle import Oracle
from piggyback_builders import settings_of, write_checkpoints
from test_model_changes import Run
from test_model_changes import settings_of as plain_settings_of

from cpu_attn.host import HostKvPool
from omniserve.engine.build import BuiltModel
from omniserve.engine.model_news import Loaded, Refused, Unloaded
from omniserve.settings import ModelStats

ARCH = "qwen3"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("models"), [ARCH, "llama"])


@pytest.fixture
def run(checkpoints: dict[str, Path]) -> Iterator[Run]:
    """Of an engine without a host process."""
    run = Run(make_engine(plain_settings_of(checkpoints, "llama"), poll_arrivals=lambda: None))
    yield run
    run.engine.close()


def stats_of(run: Run, name: str) -> ModelStats:
    return next(stats for stats in run.engine.stats() if stats.name == name)


def num_offloaded(run: Run, name: str) -> int:
    stats = stats_of(run, name).piggyback
    assert stats is not None
    return stats.num_offloaded


def test_they_share_a_host_process_that_begins_with_the_first(
    run: Run, checkpoints: dict[str, Path]
) -> None:
    settings = settings_of(ARCH, checkpoints[ARCH], "forced")
    name = settings.name
    oracles = {name: Oracle(checkpoints[ARCH]), "llama": Oracle(checkpoints["llama"])}
    pids = set()
    for _ in range(2):
        assert isinstance(run.load(settings), Loaded)
        host = run.engine._host
        assert host is not None
        host.await_ready()
        pids.add(host.host.pid)
        for index in range(8):
            run.add(name, "best_effort", 24)
            run.add("llama", "latency_sensitive" if index % 2 else "best_effort")
        run.settle()
        piggyback = stats_of(run, name).piggyback
        assert piggyback is not None and piggyback.num_tokens > 0
        cut_off = {run.add(name, "best_effort", 60) for _ in range(8)}
        run.until(lambda: num_offloaded(run, name) > 0)
        run.add("llama", "best_effort")
        run.unload(name)
        assert cut_off == {each for each in run.errors if each in cut_off}
        assert isinstance(run.news[-1], Unloaded)
        assert not host.host.models
        run.settle()
    assert len(pids) == 1
    run.check(oracles)


def test_what_cannot_piggyback_beside_others_is_refused_before_it_is_read(
    run: Run, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(ARCH, checkpoints[ARCH], "forced")
    assert settings.piggyback is not None

    def refusal(**changed: Any) -> str:
        assert settings.piggyback is not None
        before = len(run.news)
        answer = run.load(
            replace(settings, name="more", piggyback=replace(settings.piggyback, **changed))
        )
        assert isinstance(answer, Refused) and run.news[before:] == [answer]
        return answer.message

    num_lanes = settings.piggyback.max_offloaded_requests
    too_many = 1 + (os.cpu_count() or 1)
    assert "cores that this process can spare" in refusal(host_attention_threads=too_many)
    assert isinstance(run.load(settings), Loaded)
    message = refusal(max_offloaded_requests=num_lanes + 1)
    assert f"max_offloaded_requests: {num_lanes + 1} is more than the {num_lanes}" in message
    monkeypatch.setattr("omniserve.piggyback.host_link.MAX_MODELS", 1)
    assert "no more can" in refusal()


def test_one_that_fails_as_it_joins_leaves_the_host_process(
    run: Run, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(ARCH, checkpoints[ARCH], "forced")
    pools: list[HostKvPool] = []

    def fail(part: BuiltModel, *_: object) -> None:
        assert part.hosted is not None
        pools.append(part.hosted.host.pool)
        raise MemoryError("no room for its tables")

    with monkeypatch.context() as patched:
        patched.setattr("omniserve.engine.core.make_runtime", fail)
        assert isinstance(run.load(settings), Refused)
    host = run.engine._host
    assert host is not None and not host.host.models
    run.until(lambda: [pool.fd for pool in pools] == [-1])
    assert isinstance(run.load(settings), Loaded)
    assert len(host.host.models) == 1
