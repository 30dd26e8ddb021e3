"""When an engine that piggybacks is closed, or its host is given up, nothing is left behind."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from engine_builders import make_request, run_all
from host_attention_builders import thread_states, until
from piggyback_builders import Fleet, model_name, running_fleet, write_checkpoints

from cpu_attn.host import HostSettings
from omniserve.errors import ConfigError
from omniserve.piggyback import build, host_link
from omniserve.requests import EngineRequest

ARCH = "qwen3"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("shutdown"), [ARCH])


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, no shared memory, no thread, and all cores as before."""
    before = _belongings()
    yield
    assert _belongings() == before


def _belongings() -> tuple[set[int], int, set[str], set[int]]:
    # While arrays of it live the memory does too; an engine is part of a cycle.
    gc.collect()
    me = psutil.Process()
    links = (os.readlink(path) for path in _descriptors())
    num_memories = sum("omniserve" in link for link in links)
    # One memory may be several mappings: the kernel joins and splits them as it likes.
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = {parts[4] for parts in maps if any("omniserve" in name for name in parts[5:])}
    return {child.pid for child in me.children()}, num_memories, mapped, os.sched_getaffinity(0)


def _descriptors() -> list[Path]:
    return [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


@contextmanager
def busy_fleet(checkpoints: dict[str, Path]) -> Iterator[Fleet]:
    """Requests that swap, wait for the host and are ready."""
    with running_fleet(checkpoints, ["forced"]) as fleet:
        fleet.engine.warm_up()
        for request in _requests(6):
            fleet.engine.add(request)
        for _ in range(12):
            fleet.engine.step()
        yield fleet


def _requests(count: int) -> list[EngineRequest]:
    model = model_name(ARCH, "forced")
    return [
        make_request(f"r{index}", range(10 + index, 50), service_class="best_effort", model=model)
        for index in range(count)
    ]


def test_closed_amid_work(checkpoints: dict[str, Path]) -> None:
    with busy_fleet(checkpoints) as fleet:
        assert fleet.engine.has_unfinished
        fleet.engine.close()
        # Doing it again is harmless.


def test_closed_while_the_host_is_stopped(
    checkpoints: dict[str, Path],
) -> None:
    with busy_fleet(checkpoints) as fleet:
        pid = fleet.host.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        until(lambda: thread_states(pid) == {"T"})


def test_closed_before_the_host_is_ready(checkpoints: dict[str, Path]) -> None:
    with running_fleet(checkpoints, ["forced"]) as fleet:
        assert fleet.host.state == "starting"


def test_a_host_that_dies_while_it_starts_is_started_anew(checkpoints: dict[str, Path]) -> None:
    with running_fleet(checkpoints, ["forced"]) as fleet:
        assert fleet.host.pid is not None and fleet.engine._host is not None
        os.kill(fleet.host.pid, signal.SIGKILL)
        fleet.engine._host.await_ready()
        run_all(fleet.engine, _requests(2))
        until(lambda: fleet.host.supervise() == "ready")
        assert fleet.host.counters.num_restarts == 1


@pytest.mark.parametrize("is_noticed_at_once", [False, True])
def test_a_host_that_is_given_up_leaves_the_device_alone(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, is_noticed_at_once: bool
) -> None:
    """At once: while results that it had brought still let requests come to their next token."""
    monkeypatch.setattr(host_link, "HostSettings", partial(HostSettings, max_restarts=0))
    requests = _requests(6)
    with running_fleet(checkpoints, ["forced"]) as fleet:
        engine = fleet.engine
        engine.warm_up()
        expected = {name: got.token_ids for name, got in run_all(engine, requests).items()}

        def kill_at(step: int) -> None:
            fleet.check_integrity()
            if step == 12:
                assert fleet.host.pid is not None
                os.kill(fleet.host.pid, signal.SIGKILL)
                if is_noticed_at_once:
                    until(lambda: fleet.host.supervise() == "failed")

        again = run_all(engine, requests, after_step=kill_at)
        assert {name: got.token_ids for name, got in again.items()} == expected
        stats = fleet.stats(ARCH, "forced").piggyback
        assert stats is not None
        assert (stats.active, stats.host_state, stats.num_offloaded) == (False, "failed", 0)
        # New ones stay on the device.
        num_tokens = stats.num_tokens
        run_all(engine, requests)
        after = fleet.stats(ARCH, "forced").piggyback
        assert after is not None and after.num_tokens == num_tokens
        fleet.settle()


def test_an_engine_that_cannot_be_built_leaves_no_host(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> NoReturn:
        raise OSError("no memory can be locked")

    monkeypatch.setattr(build, "open_swapper", refuse)
    with pytest.raises(ConfigError, match="no memory can be locked"):
        Fleet(checkpoints, ["forced"])
