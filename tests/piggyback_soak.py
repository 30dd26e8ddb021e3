"""Thousands of random schedules, with a host that is stopped and killed: `make soak`."""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from piggyback_builders import ARCHITECTURES, REGIMES, running_fleet, write_checkpoints
from piggyback_trials import Trials
from piggyback_troubles import HostTroubles

SCHEDULES_PER_FLEET = 100
_KILLS_PER_FLEET = 4
"""A process that dies more often in a minute is given up."""
_TROUBLED = 0.3
"""Share of the schedules in which something befalls the host."""


def main() -> None:
    """Ends with a traceback that names the schedule where one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=2000, help="how many to run")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    args = parser.parse_args()
    started_s = time.monotonic()
    num_tokens = num_ties = num_piggybacked = 0
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = write_checkpoints(Path(directory), ARCHITECTURES)
        for first in range(0, args.schedules, SCHEDULES_PER_FLEET):
            count = min(SCHEDULES_PER_FLEET, args.schedules - first)
            trials = _run_fleet(checkpoints, args.seed * 1_000_000 + first, count)
            num_tokens += trials.verdict.num_tokens
            num_ties += trials.verdict.num_ties
            num_piggybacked += trials.num_piggybacked
            sys.stderr.write(
                f"{first + count} schedules, {num_tokens} tokens, {num_piggybacked} piggybacked, "
                f"{num_ties} ties, {time.monotonic() - started_s:.0f} s\n"
            )
    sys.stdout.write("every answer is right\n")


def _run_fleet(checkpoints: dict[str, Path], seed: int, count: int) -> Trials:
    """`count` schedules on a new fleet with new prompts."""
    rng = random.Random(seed)
    kills_left = _KILLS_PER_FLEET
    with running_fleet(checkpoints, [name for name in REGIMES if name != "off"]) as fleet:
        trials = Trials(fleet, prompts_seed=seed)
        all_pairs = [(arch, regime) for arch in ARCHITECTURES for regime in REGIMES]
        for number in range(seed, seed + count):
            pairs = rng.sample(all_pairs, rng.choice([1, 1, 1, 2, 4]))
            troubles = None
            if rng.random() < _TROUBLED:
                troubles = HostTroubles(fleet.host, rng, may_kill=kills_left > 0)
                kills_left -= troubles.kills
            trials.run(pairs, number, troubles)
    return trials


if __name__ == "__main__":
    main()
