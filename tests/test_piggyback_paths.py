"""Exactness on every way through an engine.

Plans made ahead; the way of lane rows and KV on accelerators, for which torch's CPU device stands
in, with side streams that work late; and a device that takes the host's cores whenever it can.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from late_stream import LateMark, LateStream
from piggyback_builders import REGIMES, running_fleet, write_checkpoints
from piggyback_trials import Trials

from omniserve.piggyback import build, host_link
from omniserve.piggyback.accelerator_block_copier import AcceleratorBlockCopier
from omniserve.piggyback.accelerator_exchange import AcceleratorExchange
from omniserve.piggyback.kv_swapper import KvSwapper
from scheduler import HostCoresRule, host_cores_rule

ARCH = "qwen3"


class PolledStream:
    """Does its oldest work at every third question whether some of it is done."""

    def __init__(self) -> None:
        self._stream = LateStream()
        self._num_questions = 0

    def enqueue(self, work: Callable[[], object]) -> "PolledMark":
        return PolledMark(self, self._stream.enqueue(work))

    def asked(self) -> None:
        self._num_questions += 1
        if self._num_questions % 3 == 0:
            self._stream.advance()

    def drain(self) -> None:
        self._stream.drain()


@dataclass(frozen=True, slots=True)
class PolledMark:
    stream: PolledStream
    mark: LateMark

    def query(self) -> bool:
        if not self.mark.is_reached:
            self.stream.asked()
        return self.mark.is_reached


class PageableRegion:
    """torch's CPU device copies from any memory."""

    def close(self) -> None:
        """Nothing was page-locked."""


class RestlessRule(HostCoresRule):
    """The host rests every now and then, whatever the pressure."""

    num_updates = 0

    def update(self, now_s: float, *, num_offloaded: int, pressure: float) -> bool:
        self.num_updates += 1
        is_pressed = self.num_updates // 9 % 2 == 1
        # Long enough apart for the rule to calm down in between.
        return super().update(
            float(self.num_updates),
            num_offloaded=num_offloaded,
            pressure=1.0 if is_pressed else 0.0,
        )


def _accelerator_swapper(cache: Any, pool: Any, cores: Any) -> KvSwapper:
    return KvSwapper(AcceleratorBlockCopier(cache, pool, PolledStream(), PageableRegion()))


def _accelerator_exchange(
    host: Any, model: int, hidden_size: int, dtype: Any, device: Any, lose: Any
) -> AcceleratorExchange:
    return AcceleratorExchange(host, model, hidden_size, dtype, device, PolledStream(), lose)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("ahead"), [ARCH])


@pytest.fixture(scope="module", params=["ahead", "accelerator", "elastic_cores"])
def trials(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Iterator[Trials]:
    fields = {"threads": 2} if request.param == "elastic_cores" else {"pipeline_depth": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_cores_rule, "_QUIET_S", 0.0)
        if request.param == "accelerator":
            patch.setattr(build, "open_swapper", _accelerator_swapper)
            patch.setattr(build, "open_exchange", _accelerator_exchange)
        regimes = [name for name in REGIMES if name != "off"]
        with running_fleet(checkpoints, regimes, **fields) as fleet:
            yield Trials(fleet, prompts_seed=3)


@pytest.mark.parametrize("regime", REGIMES)
def test_random_schedules_equal_transformers(trials: Trials, regime: str) -> None:
    for seed in range(3):
        trials.run([(ARCH, regime)], seed)
    stats = trials.fleet.stats(ARCH, regime).piggyback
    assert stats is None or stats.num_rows_joined > 0


def test_a_host_that_rests_now_and_then_changes_nothing(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_link, "HostCoresRule", RestlessRule)
    regime = next(name for name in REGIMES if name != "off")
    with running_fleet(checkpoints, [regime], threads=2) as fleet:
        Trials(fleet, prompts_seed=3).run([(ARCH, regime)], 0)
        stats = fleet.stats(ARCH, regime).piggyback
        assert stats is not None and stats.num_rows_joined > 0
