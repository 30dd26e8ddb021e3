"""What the front costs: OmniServe's servers over an engine that takes no time, beside bare ones.

The daemon has one core; the null engine and the load generator share another. Every trial is also
done with the library that carries it alone (`grpc.aio`, uvicorn), in turn, on the same core.

    flood   tokens are made as fast as they reach the client, a few steps ahead of it
    paced   every stream gets a token every --step-ms, all of them at once, as a batch gives them
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from api_client import Wire
from api_memory import Memory, watch_memory
from api_processes import Server, cores, running_daemon, running_raw_server
from api_report import Pairing, document, goals_met, pairings
from api_trials import Case, Pace, Procedure, run_all
from machine import machine, say

ROOT = Path(__file__).resolve().parent.parent
WIRES: tuple[Wire, ...] = ("grpc", "http")
PACES: tuple[Pace, ...] = ("flood", "paced")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wires", nargs="+", default=list(WIRES), choices=WIRES)
    parser.add_argument("--paces", nargs="+", default=list(PACES), choices=PACES)
    parser.add_argument(
        "--streams", type=int, nargs="*", default=[1, 4, 16, 64, 256], help="none: memory alone"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each trial")
    parser.add_argument("--warm-up-s", type=float, default=0.5)
    parser.add_argument("--settle-s", type=float, default=0.3, help="pause after each trial")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--connections", type=int, default=8, help="that gRPC streams share")
    parser.add_argument("--steps-ahead", type=int, default=4, help="of the client, in a flood")
    parser.add_argument(
        "--requests", type=int, default=0, help="then send so many and watch the daemon's memory"
    )
    parser.add_argument("--quick", action="store_true", help="fewer streams, two short rounds")
    parser.add_argument("--out", type=Path, default=ROOT / "out/bench", help="for api.md, api.json")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.rounds, options.seconds = [1, 16, 64], 2, 1.0
    return options


def measure(
    options: argparse.Namespace, procedure: Procedure
) -> tuple[list[Pairing], Memory | None]:
    options.out.mkdir(parents=True, exist_ok=True)
    cpus = cores()
    cases = [
        Case(wire, pace, num_streams)
        for wire in options.wires
        for pace in options.paces
        for num_streams in options.streams
    ]
    with ExitStack() as stack:
        # Short, because it has to hold sockets.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omniserve-api-")))
        log = options.out / "api-daemon.log"
        ours = stack.enter_context(running_daemon(directory, cpus, options.steps_ahead, log))
        bare: dict[Wire, Server] = {
            wire: stack.enter_context(running_raw_server(wire, cpus[0])) for wire in options.wires
        }
        keep_off(cpus[1])
        results = pairings(run_all(cases, procedure, ours, bare))
        memory = None
        if options.requests:
            memory = watch_memory(ours, options.requests, options.connections)
    return results, memory


def keep_off(cpu: int) -> None:
    """The load generator stays off the servers' core."""
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})


def write(out: Path, text: str, results: Sequence[Pairing], memory: Memory | None) -> None:
    found = {
        "trials": [asdict(trial) for each in results for trial in (*each.ours, *each.bare)],
        "memory": None if memory is None else asdict(memory),
    }
    (out / "api.json").write_text(json.dumps(found, indent=1))
    (out / "api.md").write_text(text)


def main() -> int:
    options = parse_arguments()
    # Before this process keeps off some of its cores.
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}"
    procedure = Procedure(
        options.seconds,
        options.warm_up_s,
        options.settle_s,
        options.step_ms,
        options.connections,
        options.rounds,
    )
    results, memory = measure(options, procedure)
    command = shlex.join(["benchmarks/api.py", *sys.argv[1:]])
    text = document(results, memory, procedure, when, command)
    write(options.out, text, results, memory)
    print(text)
    goals = goals_met(results)
    for name, is_met in goals:
        say(f"{'met' if is_met else 'MISSED'}: {name}")
    return 0 if all(is_met for _, is_met in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
