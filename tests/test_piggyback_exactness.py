"""Offloaded or not, every token of every request is what plain transformers generates.

Random schedules: arrivals, lengths, ways of sampling, ends and cancellations, under limits from
roomy to far too small.
"""

from collections.abc import Iterator

import pytest
from piggyback_builders import ARCHITECTURES, REGIMES, Fleet, running_fleet, write_checkpoints
from piggyback_trials import Trials

SCHEDULES_PER_MODEL = 10
PIGGYBACKING = [regime for regime in REGIMES if regime != "off"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    checkpoints = write_checkpoints(tmp_path_factory.mktemp("piggyback"), ARCHITECTURES)
    with running_fleet(checkpoints, PIGGYBACKING) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def trials(fleet: Fleet) -> Trials:
    return Trials(fleet, prompts_seed=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("regime", REGIMES)
def test_random_schedules_equal_transformers(trials: Trials, arch: str, regime: str) -> None:
    for seed in range(SCHEDULES_PER_MODEL):
        trials.run([(arch, regime)], seed)


def test_models_share_one_host(trials: Trials) -> None:
    pairs = [(arch, regime) for arch in ARCHITECTURES for regime in ("forced", "short_of_all")]
    for seed in range(6):
        trials.run(pairs, seed)
