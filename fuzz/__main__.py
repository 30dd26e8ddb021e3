"""`python -m fuzz`: fuzzes every surface in turn and says what came of it."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from fuzz.campaign import Budget, Outcome, run_guided
from fuzz.sane_engine import make_checkpoint
from fuzz.served import SERVED, run_served
from fuzz.targets import TARGETS

FINDINGS = Path("out/fuzz")


def main() -> int:
    """0 where no defect was found, else 1."""
    options = _parse()
    budget = Budget(options.seconds, options.cases)
    outcomes = []
    for target in options.targets:
        outcome = _run(target, budget)
        outcomes.append(outcome)
        print(outcome, flush=True)
        if outcome.finding:
            print(outcome.finding, file=sys.stderr, flush=True)
    print(f"{sum(outcome.num_cases for outcome in outcomes):,} cases in all")
    return 1 if any(outcome.finding for outcome in outcomes) else 0


def _parse() -> argparse.Namespace:
    names = (*TARGETS, *SERVED)
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS") or 60), help="of a target"
    )
    parser.add_argument(
        "--cases", type=int, default=int(os.environ.get("FUZZ_CASES") or 10**9), help="of a target"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(names)}")
    options = parser.parse_args()
    options.targets = options.targets or list(names)
    unknown = [name for name in options.targets if name not in names]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(names)}")
    return options


def _run(target: str, budget: Budget) -> Outcome:
    if target in TARGETS:
        return run_guided(target, budget, FINDINGS)
    with tempfile.TemporaryDirectory(prefix="omniserve-fuzz-") as directory:
        return run_served(target, budget, make_checkpoint(Path(directory)))


if __name__ == "__main__":
    sys.exit(main())
