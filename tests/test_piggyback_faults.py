"""A host process that is stopped, slow, killed or given up costs best-effort work time: no more."""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from engine_builders import GREEDY, Collected, make_request
from host_attention_builders import thread_states, until
from piggyback_builders import Fleet, model_name, running_fleet, write_checkpoints
from piggyback_references import MAX_TOKENS, References
from piggyback_trials import Trials
from piggyback_troubles import HostTroubles, slowed

from cpu_attn.host import HostSettings
from omniserve.piggyback import host_link
from omniserve.requests import EngineRequest, RequestOutput, ServiceClassName

ARCH = "qwen3"
REGIMES = ("forced", "mixed", "short_of_device", "short_of_all")
FORCED = model_name(ARCH, "forced")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("faults"), [ARCH])


@pytest.fixture(scope="module")
def fleet(checkpoints: dict[str, Path]) -> Iterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch:
        # More deaths in a minute than a healthy machine sees.
        patch.setattr(host_link, "HostSettings", partial(HostSettings, max_restarts=100))
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
    for seed in range(8):
        troubles = HostTroubles(fleet.host, rng, may_kill=seed % 2 == 0)
        trials.run([(ARCH, REGIMES[seed % len(REGIMES)])], seed, troubles)
    until(lambda: fleet.host.supervise() == "ready")
    assert fleet.host.counters.num_restarts > before.num_restarts
    assert fleet.host.counters.num_redone > before.num_redone
