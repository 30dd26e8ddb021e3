"""Offloaded or not, every token of every request is what plain transformers generates.

Random schedules: arrivals, lengths, ways of sampling, ends and cancellations, under limits from
roomy to far too small.
"""

from collections.abc import Iterator

import pytest
from piggyback_builders import (
    ARCHITECTURES,
    REGIMES,
    Fleet,
    model_name,
    running_fleet,
    write_checkpoints,
)
from piggyback_trials import Trials

SCHEDULES_PER_MODEL = 5
"""Of 28 models. With those of other modules there are more than 200."""
MOST_SCHEDULES = 20
"""Of a model of whose requests none has returned yet."""
PIGGYBACKING = [regime for regime in REGIMES if regime != "off"]
RETURNING = ("mixed", "short_of_device", "no_prefixes")
"""Regimes in which some requests come back to the device."""


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
    before = trials.fleet.stats(arch, regime).piggyback
    told = -trials.num_piggybacked
    for seed in range(SCHEDULES_PER_MODEL):
        trials.run([(arch, regime)], seed)
    if before is not None and regime in RETURNING:
        # When results come from the host says whether there is room for somebody to return.
        for seed in range(SCHEDULES_PER_MODEL, MOST_SCHEDULES):
            stats = trials.fleet.stats(arch, regime).piggyback
            assert stats is not None
            if stats.num_swaps_in > before.num_swaps_in:
                break
            trials.run([(arch, regime)], seed)
    told += trials.num_piggybacked
    after = trials.fleet.stats(arch, regime).piggyback
    if before is None or after is None:
        assert told == 0
        return
    # Of cancelled requests there may be tokens that nobody was told of.
    num_tokens = after.num_tokens - before.num_tokens
    assert num_tokens >= told > 0
    num_layers = trials.fleet.engine.runtime(model_name(arch, regime)).num_layers
    assert after.num_rows_joined - before.num_rows_joined >= num_tokens * num_layers
    assert sum(after.hop_steps_counts) == after.num_rows_joined
    # None joins in the step in which it left.
    assert after.hop_steps_sum >= after.num_rows_joined
    assert after.num_swaps_out > before.num_swaps_out
    assert after.num_swaps_in > before.num_swaps_in or regime not in RETURNING


def test_models_share_one_host(trials: Trials) -> None:
    pairs = [(arch, regime) for arch in ARCHITECTURES for regime in ("forced", "short_of_all")]
    for seed in range(6):
        trials.run(pairs, seed)
