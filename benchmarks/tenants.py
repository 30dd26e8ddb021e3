"""Two tenants with the same quota: one keeps to its times, the other floods.

A real daemon with a real model. The first tenant's requests arrive at the same random times in
every window; the time to its first tokens is compared between windows in which the other tenant

    alone          sends nothing
    within quota   always has as many requests running as its quota allows
    flood          does that, and tries for more, many times a second

Windows take turns. The engine has the first core; the front shares the last with both clients, of
which the pressing one has what the others leave: whatever refusing costs the daemon is felt by
whoever is not refused.
"""

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
from api_processes import READY, cores, python_process
from machine import machine, say
from tenants_load import Tenant, Window, Work, arrival_times_s, send_at_times
from tenants_pressing import Pressure, pressing
from tenants_report import ALONE, CONDITIONS, FLOOD, WITHIN, Verdict, document

from omniserve.access.bearer_token import hash_of, new_token

ROOT = Path(__file__).resolve().parent.parent
MODEL, TIER = "demo", "chat"
SETTLE_S = 0.5
_CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0", status: "127.0.0.1:0", admin: "unix:{admin}"}}
device: {{kind: cpu, threads: 1}}
models:
  - {{name: {model}, path: {checkpoint}, dtype: bfloat16, device_kv_bytes: 64MiB,
     step_times: {step_times}, piggyback: {{enabled: false}}}}
tiers:
  - {{name: {tier}, class: latency_sensitive, ttft_ms: 5000, tpot_ms: 1000}}
tenants:
  - {{name: measured, token_sha256: {measured_hash}, quota: {{concurrent: {concurrent}}}}}
  - {{name: pressing, token_sha256: {pressing_hash}, quota: {{concurrent: {concurrent}}}}}
"""


@dataclass(frozen=True, slots=True)
class Service:
    """Where the daemon answers, and the tenants' tokens."""

    grpc_address: str
    measured_token: str
    pressing_token: str


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="windows of each condition")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window")
    parser.add_argument("--rate", type=float, default=5.0, help="of the measured tenant, a second")
    parser.add_argument("--concurrent", type=int, default=8, help="of each tenant's quota")
    parser.add_argument("--workers", type=int, default=64, help="that flood")
    parser.add_argument(
        "--tries-per-s", type=float, default=200.0, help="of the workers that are refused"
    )
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--preset", default="small", help="of the model that is made")
    parser.add_argument("--step-times", default="auto", help="as in the configuration of a model")
    parser.add_argument("--out", type=Path, default=ROOT / "out/bench", help="for its report")
    return parser.parse_args()


@contextmanager
def running_daemon(options: argparse.Namespace, directory: Path) -> Iterator[Service]:
    checkpoint = directory / "checkpoint"
    make_model = ("model", "new", str(checkpoint), "--arch", "qwen3", "--preset", options.preset)
    subprocess.run(
        [sys.executable, "-m", "omniserve", *make_model, "--dtype", "bfloat16"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    measured, other = new_token(), new_token()
    config = directory / "omniserve.yaml"
    config.write_text(
        _CONFIG.format(
            admin=directory / "admin.sock",
            model=MODEL,
            tier=TIER,
            checkpoint=checkpoint,
            step_times=options.step_times,
            measured_hash=hash_of(measured),
            pressing_hash=hash_of(other),
            concurrent=options.concurrent,
        )
    )
    log = directory / "daemon.log"
    with (
        log.open("w") as sink,
        python_process(["-m", "omniserve", "serve", str(config)], sink) as (
            process,
            first_line,
        ),
    ):
        found = READY.match(first_line)
        if found is None:
            raise RuntimeError(f"no daemon: {log.read_text()[-2000:]}")
        share_cores(psutil.Process(process.pid))
        yield Service(found[1], measured, other)


def share_cores(front: psutil.Process) -> None:
    """The first core to the engine, the last to all others."""
    engine_cpu, others_cpu = cores()
    if engine_cpu < 0:
        return
    for pid, cpu in ((os.getpid(), others_cpu), (front.pid, others_cpu)):
        _pin(pid, cpu)
    for child in front.children(recursive=True):
        _pin(child.pid, engine_cpu)


def _pin(pid: int, cpu: int) -> None:
    for task in Path("/proc", str(pid), "task").iterdir():
        # Threads end while we look.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {cpu})


async def measure(service: Service, options: argparse.Namespace) -> list[Window]:
    work = Work(MODEL, TIER, options.prompt_tokens, options.max_tokens)
    times_s = arrival_times_s(options.rate, options.seconds, seed=1)
    measured = Tenant(service.grpc_address, service.measured_token, work, seed=2)
    other = Pressure(
        service.grpc_address,
        service.pressing_token,
        options.concurrent,
        options.tries_per_s,
        work,
        seed=3,
    )
    pressures = {
        ALONE: None,
        WITHIN: other,
        FLOOD: replace(other, num_workers=options.workers),
    }
    windows = []
    try:
        await measured.ask()
        for number in range(options.rounds):
            # Each condition is first, second and last equally often.
            for place in range(len(CONDITIONS)):
                condition = CONDITIONS[(place + number) % len(CONDITIONS)]
                say(f"round {number + 1} of {options.rounds}: {condition}")
                window = Window(condition)
                await fill(window, measured, times_s, pressures[condition])
                windows.append(window)
    finally:
        await measured.close()
    return windows


async def fill(
    window: Window, measured: Tenant, times_s: list[float], pressure: Pressure | None
) -> None:
    async with AsyncExitStack() as stack:
        counts = None
        if pressure is not None:
            counts = await stack.enter_async_context(pressing(pressure))
            await asyncio.sleep(SETTLE_S)
        await send_at_times(measured, times_s, window)
    if counts is not None:
        window.num_other_done, window.num_other_refused = counts.num_done, counts.num_refused
    # Whatever was cut off is forgotten by the engine before the next window.
    await asyncio.sleep(SETTLE_S)


def main() -> int:
    options = parse_arguments()
    # Before this process keeps off some of its cores.
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}"
    with tempfile.TemporaryDirectory(prefix="omniserve-tenants-") as directory:
        with running_daemon(options, Path(directory)) as service:
            windows = asyncio.run(measure(service, options))
    verdict = Verdict(windows)
    text = document(verdict, when, shlex.join(["benchmarks/tenants.py", *sys.argv[1:]]))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tenants.json").write_text(json.dumps(list(map(asdict, windows)), indent=1))
    (options.out / "tenants.md").write_text(text)
    print(text)
    return 0 if verdict.is_met else 1


if __name__ == "__main__":
    sys.exit(main())
