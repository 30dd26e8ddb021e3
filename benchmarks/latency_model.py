"""How well step times are predicted: of held-out traffic, by the live scheduler, step by step.

A model is profiled as `omniserve profile` does it. Then mixed traffic that the profile has not seen
runs on an engine with that profile: latency-sensitive and best-effort requests of random lengths,
random arrivals, with nothing on the host (idle), and with all best-effort decodes on it (active).
The scheduler says what a step will take before it runs; it corrects itself from each that ran, as
in service. Rounds of other traffic of the kind come first and do not count: libraries compile
kernels on first use.

Accuracy is 1 - |error| / real. Beside it stands what the machine allows: how far the very same step
differs from its median in the other rounds, a steady decode from those just before it, and a
millisecond of fixed work from the one before.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
from latency_model_figures import Accuracy, Figures, figures
from latency_model_traffic import HostState, Ran, Task
from machine import machine, say

from omniserve.config import load_config
from omniserve.others_meter import OthersMeter
from omniserve.profiling.assembly import Measured
from omniserve.profiling.profiler import QUICK, THOROUGH, Profiler
from omniserve.settings import EngineSettings
from omniserve.synthetic.create import write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PRESETS = {"demo": "small", "100m": "100m"}
KV = {"demo": "64MiB", "100m": "512MiB"}
WARM_UPS = 2
GOAL_AVERAGE, GOAL_P90 = 0.95, 0.90
HOSTS: tuple[HostState, ...] = ("idle", "active")


class Document(msgspec.Struct, frozen=True):
    """What --out writes."""

    machine: str
    others_cores: float
    goal_average: float
    goal_p90: float
    figures: list[Figures]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", choices=tuple(PRESETS), help="which (default: both)"
    )
    parser.add_argument("--quick", action="store_true", help="a quick profile, and fewer steps")
    parser.add_argument("--rounds", type=int, default=3, help="that count (default: %(default)s)")
    parser.add_argument("--patience-s", type=float, default=0.5, help="to wait for quiet cores")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", help="figures as JSON")
    parser.add_argument("--steps", type=Path, metavar="DIRECTORY", help="every step as JSON")
    return parser.parse_args()


def engine_settings(name: str) -> EngineSettings:
    """As the daemon would have it; makes the model where it is missing."""
    path = ROOT / ("examples/models/demo" if name == "demo" else f"out/models/{name}")
    if not (path / "config.json").exists():
        say(f"making {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, arch="qwen3", preset=PRESETS[name])
    text = (
        f"models:\n  - {{name: m{name}, path: {path}, dtype: bfloat16, "
        f"device_kv_bytes: {KV[name]}}}\n"
        "tiers:\n  - {name: interactive, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}\n"
        "  - {name: batch, class: best_effort}\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return load_config(Path(file.name)).engine_settings()


def profiled(settings: EngineSettings, args: argparse.Namespace) -> tuple[EngineSettings, Measured]:
    """The settings of an engine that knows its step times."""
    (model,) = settings.models
    effort = QUICK if args.quick else THOROUGH
    profiler = Profiler(settings, model.name, effort, patience_s=args.patience_s)
    measured = profiler.run()
    piggyback = model.piggyback
    if piggyback is not None:
        piggyback = replace(piggyback, host_kv_bytes=min(piggyback.host_kv_bytes, 1 << 30))
    known = replace(model, step_time=measured.profile.step_time, piggyback=piggyback)
    return replace(settings, models=(known,)), measured


def held_out(task: Task) -> Ran:
    """Raises CalledProcessError where the worker fails; it says why on stderr."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("latency_model_worker.py"))],
        input=msgspec.json.encode(task),
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Ran)


def measure(name: str, args: argparse.Namespace) -> list[Figures]:
    say(f"{name}: profiling")
    settings, _ = profiled(engine_settings(name), args)
    found = []
    for host in HOSTS:
        if host == "active" and settings.models[0].piggyback is None:
            say(f"{name}: piggybacking is off here, so there is no active host")
            continue
        say(f"{name}: held-out traffic, host {host}")
        phase_steps = 80 if args.quick else 250
        task = Task(settings, host, WARM_UPS, args.rounds, phase_steps, args.seed)
        ran = held_out(task)
        if args.steps is not None:
            args.steps.mkdir(parents=True, exist_ok=True)
            (args.steps / f"{name}-{host}.json").write_bytes(msgspec.json.encode(ran))
        found.append(figures(name, host, ran))
        print("\n".join(lines(found[-1])), flush=True)
    return found


def lines(each: Figures) -> list[str]:
    parts: tuple[tuple[str, Accuracy | None], ...] = (
        ("in service", each.in_service),
        ("  undisturbed by others", each.undisturbed),
        ("  decodes alone", each.decodes),
        ("  with prompts", each.prompts),
        ("  steady decodes", each.steady_in_service),
        ("as fitted, nothing learned", each.as_fitted),
        ("noise: same step, other rounds", each.repeated),
        ("noise: steady decodes", each.steady),
        ("noise: a millisecond of fixed work", each.fixed_work),
    )
    rows = [
        f"  {words:34s} {found.average:8.1%} {found.p90:8.1%} {found.median:8.1%} "
        f"{found.p99:8.1%} {found.num_steps:8,d}"
        for words, found in parts
        if found is not None
    ]
    heading = f"{each.model}, host {each.host} ({each.disturbed_share:.0%} of steps disturbed)"
    return [f"{heading:36s}  average      p90   median      p99    steps", *rows]


def reached(each: Figures) -> bool:
    found = each.in_service
    return found is not None and found.average >= GOAL_AVERAGE and found.p90 >= GOAL_P90


def main() -> int:
    args = parse_arguments()
    meter = OthersMeter()
    found = [each for name in args.model or PRESETS for each in measure(name, args)]
    document = Document(machine(), meter.cores(), GOAL_AVERAGE, GOAL_P90, found)
    for each in found:
        verdict = "reached" if reached(each) else "missed"
        say(f"{each.model}, host {each.host}: goal {verdict}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
