"""What deciding costs: of one step (`schedule` and `complete`), and of one admission.

The scheduler runs on a clock of its own, with no engine beside it; its requests go on for ever, so
that each step is like the one before.

    decodes   latency-sensitive decodes alone
    mixed     half of them latency-sensitive decodes, beside best-effort decodes and four prompts
    queued    the same, with 500 best-effort requests of three tenants that wait
    late      latency-sensitive decodes, and 500 latency-sensitive requests that wait
    lanes     half of them latency-sensitive decodes, the others on the host, a token each a step
"""

import argparse
import gc
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf

from cpu_attn.host.block_allocator import BlockAllocator
from scheduler import (
    Objectives,
    PiggybackLimits,
    Request,
    Scheduler,
    SchedulerSettings,
    ServiceClass,
    StepPlan,
    StepResult,
)
from scheduler.step_time import LinearStepTime, StepCosts

LS, BE = ServiceClass.LATENCY_SENSITIVE, ServiceClass.BEST_EFFORT
GOAL_STEP_US = {64: 200.0, 512: 1000.0}
GOAL_ADMISSION_US = 100.0
CASES = ("decodes", "mixed", "queued", "late", "lanes")
NUM_WAITING = 500
NUM_PROMPTS = 4
CONTEXT_TOKENS = 300
PROMPT_TOKENS = 60_000
MAX_OUTPUT_TOKENS = 20_000
MAX_MODEL_LEN = 1 << 20
COSTS = StepCosts(
    overhead_s=1e-3,
    dense_ladder=tuple((rows, 4e-3 + 4e-5 * rows) for rows in (1, 8, 16, 32, 64, 128, 256, 512)),
    decode_row_s=5e-6,
    decode_context_token_s=2e-8,
    prefill_token_s=1e-6,
    prefill_pair_s=1e-9,
    prefill_context_token_s=1e-9,
    prefill_step_s=1e-4,
    lane_row_s=1e-5,
    sampled_row_s=1e-5,
)
CHAT = Objectives(ttft_s=1e6, tpot_s=0.05)


class HostBlocks(BlockAllocator):
    """The books of a host pool, without its memory."""

    @property
    def num_granted_blocks(self) -> int:
        return self.num_blocks

    @property
    def num_cached_blocks(self) -> int:
        return self.num_cached

    @property
    def num_free_blocks(self) -> int:
        return self.num_free

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(list(block_ids))


@dataclass
class Bench:
    """A scheduler with steady work, and the clock it is on."""

    scheduler: Scheduler
    read_ns: Callable[[], int]
    now_s: float = 0.0

    def step_ns(self) -> int:
        """Nanoseconds that one step's decisions take; what an engine does is left out."""
        scheduler = self.scheduler
        begun_ns = self.read_ns()
        plan = scheduler.schedule(now_s=self.now_s)
        took_ns = self.read_ns() - begun_ns
        assert plan is not None
        self._settle()
        self.now_s += plan.predicted_s or 0.02
        result = _result(plan)
        begun_ns = self.read_ns()
        scheduler.complete(plan, result, self.now_s)
        return took_ns + self.read_ns() - begun_ns

    def _settle(self) -> None:
        for copy in self.scheduler.take_copies():
            self.scheduler.copy_landed(copy.request_id)
        for lane in self.scheduler.take_released_lanes():
            self.scheduler.lane_is_quiet(lane)

    def admission_ns(self, newcomer: Request) -> int:
        begun_ns = self.read_ns()
        self.scheduler.ttft_forecast.ttft_s(newcomer, self.now_s)
        return self.read_ns() - begun_ns


def _result(plan: StepPlan) -> StepResult:
    sampled = {rows.request_id: 7 for rows in plan.rows if rows.samples}
    return StepResult(sampled, {entry.request_id: 7 for entry in plan.lane_entries})


def make_request(
    name: str, service_class: ServiceClass, num_tokens: int, arrival_s: float = 0.0
) -> Request:
    return Request(
        request_id=name,
        service_class=service_class,
        tier="chat" if service_class is LS else "batch",
        arrival_s=arrival_s,
        token_ids=array("q", [1]) * num_tokens,
        max_tokens=MAX_OUTPUT_TOKENS,
        objectives=CHAT if service_class is LS else None,
        tenant=name[-1],
    )


def make_bench(
    case: str, num_requests: int, *, has_control: bool, read_ns: Callable[[], int]
) -> Bench:
    """Everybody who may run has begun to decode, but for the long prompts."""
    limits = PiggybackLimits(num_requests, num_requests, num_requests, max_resident_decodes=0)
    settings = SchedulerSettings(
        num_blocks=MAX_OUTPUT_TOKENS // 32 * 2 * num_requests,
        block_size=32,
        max_running_requests=num_requests,
        max_step_tokens=max(512, 2 * num_requests),
        best_effort_tokens_beside_ls=max(512, 2 * num_requests),
        max_model_len=MAX_MODEL_LEN,
        prefix_caching=True,
        kv_reserve_share=0.05,
        piggyback=limits if case == "lanes" else None,
    )
    blocks = HostBlocks(settings.num_blocks) if case == "lanes" else None
    step_time = LinearStepTime(COSTS) if has_control else None
    bench = Bench(Scheduler(settings, blocks, step_time), read_ns)
    for request in _runners(case, num_requests):
        bench.scheduler.add(request)
    for _ in range(8 * num_requests):
        bench.step_ns()
        if not bench.scheduler.num_waiting:
            break
    for request in _waiters(case):
        bench.scheduler.add(request)
    for _ in range(50):
        bench.step_ns()
    return bench


def _runners(case: str, num_requests: int) -> Iterator[Request]:
    all_urgent = case in ("decodes", "late")
    num_urgent = num_requests if all_urgent else num_requests // 2
    for number in range(num_urgent):
        yield make_request(f"ls-{number}", LS, CONTEXT_TOKENS)
    num_prompts = NUM_PROMPTS if case in ("mixed", "queued") else 0
    for number in range(num_requests - num_urgent - num_prompts):
        yield make_request(f"be-{number}", BE, CONTEXT_TOKENS)
    for number in range(num_prompts):
        yield make_request(f"prompt-{number}", BE, PROMPT_TOKENS)


def _waiters(case: str) -> Iterator[Request]:
    for number in range(NUM_WAITING):
        if case == "queued":
            yield make_request(f"waits-{number}-{number % 3}", BE, CONTEXT_TOKENS)
        elif case == "late":
            yield make_request(f"waits-{number}", LS, CONTEXT_TOKENS)


@dataclass(frozen=True)
class Line:
    """One row of the table, in microseconds."""

    what: str
    num_requests: int
    control: str
    times_us: list[float]
    goal_us: float

    @property
    def p99_us(self) -> float:
        return statistics.quantiles(self.times_us, n=100)[98]

    def __str__(self) -> str:
        median_us = statistics.median(self.times_us)
        verdict = "" if self.goal_us == inf else "met" if median_us <= self.goal_us else "MISSED"
        goal = "" if self.goal_us == inf else f"{self.goal_us:.0f}"
        return (
            f"| {self.what} | {self.num_requests} | {self.control} | {median_us:.0f} "
            f"| {self.p99_us:.0f} | {goal} | {verdict} |"
        )


def measure(options: argparse.Namespace) -> Iterator[Line]:
    read_ns = time.thread_time_ns if options.clock == "cpu" else time.perf_counter_ns
    for num_requests in options.requests:
        for case in options.cases:
            for has_control in (True, False):
                control = "on" if has_control else "off"
                bench = make_bench(case, num_requests, has_control=has_control, read_ns=read_ns)
                gc.collect()
                times_us = [bench.step_ns() / 1e3 for _ in range(options.steps)]
                goal_us = GOAL_STEP_US.get(num_requests, inf)
                yield Line(f"step, {case}", num_requests, control, times_us, goal_us)
                if has_control:
                    newcomer = make_request("new", LS, CONTEXT_TOKENS, bench.now_s)
                    times_us = [bench.admission_ns(newcomer) / 1e3 for _ in range(options.steps)]
                    what = f"admission, {case}"
                    yield Line(what, num_requests, control, times_us, GOAL_ADMISSION_US)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[64, 512], metavar="N")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: processor time, for a machine that has other work",
    )
    options = parser.parse_args()
    print("| decision | requests | control | median µs | p99 µs | goal µs | |")
    print("|---|---|---|---|---|---|---|")
    is_met = True
    for line in measure(options):
        print(line, flush=True)
        is_met &= statistics.median(line.times_us) <= line.goal_us
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
