"""Latency-sensitive work does not wait for what goes on between device and host."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from engine_builders import GREEDY, make_request
from host_attention_builders import thread_states, until
from piggyback_builders import Fleet, model_name, running_fleet, write_checkpoints

from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.requests import EngineRequest, RequestOutput, ServiceClassName

ARCH = "qwen3"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    checkpoints = write_checkpoints(tmp_path_factory.mktemp("latency"), [ARCH])
    with running_fleet(checkpoints, ["forced", "short_of_device"]) as fleet:
        fleet.engine.warm_up()
        yield fleet


def request(
    name: str, regime: str, prompt: range, num_tokens: int, kind: ServiceClassName
) -> EngineRequest:
    sampling = replace(GREEDY, max_tokens=num_tokens)
    return make_request(name, prompt, sampling, kind, model_name(ARCH, regime))


def step_until(fleet: Fleet, is_so: Callable[[], bool]) -> None:
    while not is_so():
        fleet.engine.step()


def end_all(fleet: Fleet) -> None:
    fleet.at_layer_boundary = lambda: None
    step_until(fleet, lambda: not fleet.engine.has_unfinished)
    fleet.settle()


def test_memory_that_lands_amid_a_step_is_used_at_the_next_layer(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best-effort step is left at the first boundary after the copy, not at its end."""
    runtime = fleet.engine.runtime(model_name(ARCH, "short_of_device"))
    assert runtime._piggyback is not None
    copies = runtime._piggyback.swapper._under_way
    for index in range(3):
        prompt = range(10 + index, 50 + index)
        fleet.engine.add(request(f"be{index}", "short_of_device", prompt, 40, "best_effort"))
    step_until(fleet, lambda: runtime.scheduler.num_running == 3 and runtime.stats().num_steps > 20)
    num_boundaries, is_urgent = 0, False
    advance = ModelRuntime.advance

    def note_class(self: ModelRuntime, step: RunningStep, to_layer: int) -> None:
        nonlocal is_urgent
        is_urgent = step.plan.has_latency_sensitive
        advance(self, step, to_layer)

    monkeypatch.setattr(ModelRuntime, "advance", note_class)

    def await_copies() -> None:
        nonlocal num_boundaries
        # Those of latency-sensitive steps count for the other models of the fleet alone.
        num_boundaries += not is_urgent
        until(lambda: all(swap.copy.has_landed() for swap in copies))

    fleet.at_layer_boundary = await_copies
    fleet.engine.add(request("ls", "short_of_device", range(200, 275), 1, "latency_sensitive"))
    outputs: list[RequestOutput] = []
    while all(output.request_id != "ls" for output in outputs):
        outputs = fleet.engine.step()
    assert (runtime._piggyback.stats().num_swaps_out, num_boundaries) == (1, 1)
    end_all(fleet)


def test_nobody_naps_for_the_host_of_another_model(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, pid = fleet.engine, fleet.host.pid
    assert pid is not None
    engine.add(request("be", "forced", range(10, 50), 20, "best_effort"))
    step_until(fleet, lambda: fleet.host.num_in_flight == 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: thread_states(pid) == {"T"})
        engine.add(request("ls", "off", range(200, 220), 20, "latency_sensitive"))
        naps: list[float] = []
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", naps.append)
            num_tokens = 0
            while num_tokens < 20:
                num_tokens += len(engine.step())
        assert naps == []
    finally:
        os.kill(pid, signal.SIGCONT)
    end_all(fleet)
