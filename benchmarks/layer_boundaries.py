"""What deciding costs at a layer boundary, where several models share a device.

Each model has latency-sensitive decodes under way, as in `decisions.py`. The figures are of what a
step does between two of its layers to find out whether it stands back: the claims of all models,
and the rule. Looking for messages is not among it.

    best effort    a step without latency-sensitive rows, beside models that have some
    mixed          a step with rows of both classes
    newcomer       a mixed step, where a request has just come for another model
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from decisions import BE, LS, Bench, make_bench, make_request

from scheduler import PlannedRows, StandingStep, StepPlan
from scheduler.interleaving import begun, stands_back

GOAL_US = 20.0
NUM_LAYERS = 32
KINDS = ("best effort", "mixed", "newcomer")


def _standing(kind: str, now_s: float, bench: Bench) -> StandingStep:
    classes = (BE,) if kind == "best effort" else (LS, BE)
    rows = tuple(PlannedRows(each.name, 0, each, 0, 1, (1,), True, 0, ()) for each in classes)
    plan = StepPlan(0, rows, predicted_s=0.01, urgent_s=0.005)
    step = begun("model-0", plan, NUM_LAYERS, bench.scheduler.claim(now_s))
    step.next_layer = NUM_LAYERS // 2
    return step


def measure(
    kind: str, num_models: int, num_decodes: int, num_times: int, read_ns: Callable[[], int]
) -> list[float]:
    """Microseconds of each of so many decisions."""
    benches = {
        f"model-{index}": make_bench("decodes", num_decodes, has_control=True, read_ns=read_ns)
        for index in range(num_models)
    }
    first, *_, last = benches.values()
    now_s = first.now_s
    standing = _standing(kind, now_s, first)
    times_us = []
    for number in range(num_times):
        if kind == "newcomer":
            last.scheduler.add(make_request(f"new-{number}", LS, 300, now_s))
        begun_ns = read_ns()
        claims = {
            name: claim
            for name, bench in benches.items()
            if (claim := bench.scheduler.claim(now_s)) is not None
        }
        stands_back(standing, claims, (), now_s)
        times_us.append((read_ns() - begun_ns) / 1e3)
        if kind == "newcomer":
            last.scheduler.abort(f"new-{number}")
    return times_us


def _lines(options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    read_ns = time.thread_time_ns if options.clock == "cpu" else time.perf_counter_ns
    for kind in KINDS:
        for num_models in options.models:
            times_us = measure(kind, num_models, options.decodes, options.times, read_ns)
            median_us = statistics.median(times_us)
            p99_us = statistics.quantiles(times_us, n=100)[98]
            # A claim is reckoned anew once for each request that comes, not at each boundary.
            has_goal = kind != "newcomer"
            is_met = not has_goal or median_us <= GOAL_US
            goal = f"{GOAL_US:.0f}" if has_goal else ""
            verdict = ("met" if is_met else "MISSED") if has_goal else ""
            yield (
                f"| {kind} | {num_models} | {median_us:.1f} | {p99_us:.1f} | {goal} | {verdict} |",
                is_met,
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, nargs="+", default=[2, 4], metavar="N")
    parser.add_argument("--decodes", type=int, default=64, help="of each model")
    parser.add_argument("--times", type=int, default=2000)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    options = parser.parse_args()
    print("| step | models | median µs | p99 µs | goal µs | |")
    print("|---|---|---|---|---|---|")
    all_met = True
    for line, is_met in _lines(options):
        print(line, flush=True)
        all_met &= is_met
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
