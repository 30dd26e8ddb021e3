"""A host process that is stopped, slow, killed or given up costs best-effort work time: no more."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from engine_builders import GREEDY, Collected, make_request
from host_attention_builders import thread_states, until
from piggyback_builders import Fleet, model_name, running_fleet, write_checkpoints
from piggyback_references import MAX_TOKENS
from piggyback_trials import Trials
from piggyback_troubles import HostTroubles, stopped

from cpu_attn.host import HostSettings, supervisor
from omniserve.errors import InvalidRequest
from omniserve.piggyback import host_link
from omniserve.requests import EngineRequest, RequestOutput, ServiceClassName
from omniserve.settings import PiggybackStats
from scheduler.host_stay import Phase

ARCH = "qwen3"
REGIMES = ("forced", "mixed", "short_of_device", "short_of_all")
FORCED = model_name(ARCH, "forced")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("faults"), [ARCH])


@pytest.fixture(scope="module")
def fleet(checkpoints: dict[str, Path]) -> Iterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch:
        # More deaths in a minute than a healthy machine sees, and all of them by the tests.
        patch.setattr(
            host_link, "HostSettings", partial(HostSettings, max_restarts=100, stall_timeout_s=600)
        )
        patch.setattr(supervisor, "_MAX_DELAY_S", 0.1)
        with running_fleet(checkpoints, REGIMES) as fleet:
            fleet.engine.warm_up()
            yield fleet


@pytest.fixture(scope="module")
def trials(fleet: Fleet) -> Trials:
    return Trials(fleet, prompts_seed=2)


class Clients:
    """Requests for one model, and what they were told."""

    def __init__(self, fleet: Fleet, trials: Trials, model: str = FORCED) -> None:
        self.results: dict[str, Collected] = {}
        self._engine = fleet.engine
        self._references = trials.references[ARCH]
        self._model = model
        self._requests: dict[str, EngineRequest] = {}

    def add(
        self, name: str, prompt: int, num_tokens: int, kind: ServiceClassName = "best_effort"
    ) -> None:
        """`prompt` is an index into the references' prompts."""
        sampling = replace(GREEDY, max_tokens=num_tokens)
        token_ids = self._references.prompts[prompt]
        request = make_request(name, token_ids, sampling, kind, self._model)
        self._engine.add(request)
        self._requests[name] = request
        self.results[name] = Collected()

    def step(self) -> list[RequestOutput]:
        outputs = self._engine.step()
        for output in outputs:
            collected = self.results[output.request_id]
            collected.token_ids += output.token_ids
            collected.text += output.text
            collected.finish_reason = output.finish_reason
        return outputs

    def finish(self) -> None:
        while self._engine.has_unfinished:
            self.step()
        for name, collected in self.results.items():
            assert collected.finish_reason == "length", name
            assert not self._references.check(self._requests[name], collected).wrong


def test_kills_and_stops_change_no_token(fleet: Fleet, trials: Trials) -> None:
    rng = random.Random(3)
    before = fleet.host.counters

    def was_killed_amid_tasks() -> bool:
        until(lambda: fleet.host.supervise() == "ready")
        now = fleet.host.counters
        return now.num_restarts > before.num_restarts and now.num_redone > before.num_redone

    seed = 0
    # A kill may find a host that has done all that it had.
    while seed < 6 or not was_killed_amid_tasks():
        assert seed < 40
        troubles = HostTroubles(fleet.host, rng, may_kill=seed % 2 == 0)
        trials.run([(ARCH, REGIMES[seed % len(REGIMES)])], seed, troubles)
        seed += 1


def test_a_stopped_host_holds_up_nobody_else(fleet: Fleet, trials: Trials) -> None:
    """A latency-sensitive request gets a token from every single step all the same."""
    clients = Clients(fleet, trials)
    pid = fleet.host.pid
    assert pid is not None
    for index in range(6):
        clients.add(f"slow{index}", index, MAX_TOKENS)
    while _stats(fleet).num_on_host == 0:
        clients.step()
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: thread_states(pid) == {"T"})
        # What was done before may still come out; then nothing is left but the one task each.
        until(lambda: not clients.step() and _is_stuck(fleet))
        clients.add("urgent", 8, MAX_TOKENS, "latency_sensitive")
        rounds = [clients.step() for _ in range(MAX_TOKENS)]
        assert [[output.request_id for output in outputs] for outputs in rounds] == [
            ["urgent"]
        ] * MAX_TOKENS
        assert clients.results["urgent"].finish_reason == "length"
    finally:
        os.kill(pid, signal.SIGCONT)
    clients.finish()
    fleet.settle()


def _stats(fleet: Fleet, regime: str = "forced") -> PiggybackStats:
    stats = fleet.stats(ARCH, regime).piggyback
    assert stats is not None
    return stats


def _is_stuck(fleet: Fleet) -> bool:
    stats = _stats(fleet)
    return stats.num_on_host == stats.num_offloaded == 6


def test_a_host_fifty_times_slower_is_waited_for_by_its_own_requests_alone(
    fleet: Fleet, trials: Trials
) -> None:
    clients = Clients(fleet, trials)
    assert fleet.host.pid is not None
    with stopped(fleet.host.pid) as host:
        for index in range(4):
            clients.add(f"slow{index}", index, 3)
        clients.add("urgent0", 8, 1, "latency_sensitive")
        # One urgent request after the other, for as long as there is slow work.
        num_urgent, number = 1, count()
        while any(clients.results[f"slow{index}"].finish_reason is None for index in range(4)):
            with host.running() if next(number) % 50 == 49 else nullcontext():
                outputs = clients.step()
            urgent = f"urgent{num_urgent - 1}"
            if clients.results[urgent].finish_reason is not None:
                clients.add(f"urgent{num_urgent}", num_urgent % 10, MAX_TOKENS, "latency_sensitive")
                num_urgent += 1
            else:
                assert urgent in {output.request_id for output in outputs}
        clients.finish()
    assert num_urgent > 2
    fleet.settle()


@pytest.mark.parametrize("phase", Phase)
def test_cancelled_in_every_phase(fleet: Fleet, trials: Trials, phase: Phase) -> None:
    """Between steps, and at every layer boundary of a step: nothing is left, nobody suffers."""
    for num_boundaries in range(4):
        clients = Clients(fleet, trials, model_name(ARCH, "mixed"))
        for index in range(3):
            clients.add(f"stays{index}", index, 6)
        clients.add("goes", 3, MAX_TOKENS)
        while _phase(fleet, "mixed", "goes") is not phase:
            clients.step()
            assert clients.results["goes"].finish_reason is None, "it never got there"
        boundaries = iter(range(num_boundaries))
        fleet.at_layer_boundary = partial(_cancel_at_last, fleet, "goes", boundaries)
        if num_boundaries:
            clients.step()
        fleet.at_layer_boundary = lambda: None
        fleet.engine.abort("goes")
        del clients.results["goes"]
        clients.finish()
        fleet.settle()


def _cancel_at_last(fleet: Fleet, name: str, boundaries: Iterator[int]) -> None:
    """Cancels amid a step, at the last of `boundaries`."""
    if next(boundaries, None) is None:
        fleet.engine.abort(name)


def _phase(fleet: Fleet, regime: str, name: str) -> Phase | None:
    """Where an offloaded request stands."""
    queues = fleet.engine.runtime(model_name(ARCH, regime)).scheduler._queues
    request = queues.by_id.get(name)
    return None if request is None or request.stay is None else request.stay.phase


def test_an_id_may_be_used_again_amid_a_step(fleet: Fleet, trials: Trials) -> None:
    """The token of the cancelled request that is on its way is not the new one's."""
    for num_steps in range(3, 16):
        clients = Clients(fleet, trials)
        clients.add("again", 3, MAX_TOKENS)
        for _ in range(num_steps):
            clients.step()

        def replace_it(clients: Clients = clients) -> None:
            if "again" in clients.results:
                fleet.engine.abort("again")
                try:
                    clients.add("again", 5, 4)
                except InvalidRequest:
                    # Refused as long as a plan with its rows is under way.
                    del clients.results["again"]
            fleet.at_layer_boundary = lambda: None

        fleet.at_layer_boundary = replace_it
        clients.step()
        replace_it()
        clients.finish()
        fleet.settle()
