"""Small schedulers, requests, and plans written as text."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cpu_attn.host.block_allocator import BlockAllocator
from scheduler import Request, Scheduler, SchedulerSettings, ServiceClass, StepPlan, StepResult

LS = ServiceClass.LATENCY_SENSITIVE
BE = ServiceClass.BEST_EFFORT

ROOMY = SchedulerSettings(
    num_blocks=64,
    block_size=4,
    max_running_requests=8,
    max_step_tokens=32,
    best_effort_tokens_beside_ls=8,
    max_model_len=64,
    prefix_caching=True,
)


class HostBlockPool(BlockAllocator):
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


def make_scheduler(**changes: int) -> Scheduler:
    return Scheduler(replace(ROOMY, **changes))  # type: ignore[arg-type]


def make_request(
    request_id: str,
    prompt: int | Sequence[int] = 4,
    *,
    max_tokens: int = 16,
    needs_known_tokens: bool = False,
    tier: str = "",
) -> Request:
    """A request whose class is that of its name, "ls..." or "be...".

    A prompt given by its length alone shares no block with another request's.
    """
    service_class = {"ls": LS, "be": BE}[request_id[:2]]
    if isinstance(prompt, int):
        first = sum(ord(letter) * 131**place for place, letter in enumerate(request_id))
        prompt = range(first * 1000, first * 1000 + prompt)
    return Request(
        request_id=request_id,
        service_class=service_class,
        tier=tier or service_class.value,
        arrival_s=0.0,
        token_ids=array("q", prompt),
        max_tokens=max_tokens,
        needs_known_tokens=needs_known_tokens,
    )


def add_all(scheduler: Scheduler, requests: Iterable[Request]) -> dict[str, Request]:
    by_id = {request.request_id: request for request in requests}
    for request in by_id.values():
        scheduler.add(request)
    return by_id


def describe(plan: StepPlan | None) -> str:
    """A plan as text: `id@start+num`, `*` where a token is sampled, `?` where it is not known yet.

    Preempted requests follow as `-id`.
    """
    if plan is None:
        return "nothing"
    words = [
        f"{rows.request_id}@{rows.start}+{rows.num_tokens}"
        f"{'?' if rows.token_ids is None else ''}{'*' if rows.samples else ''}"
        for rows in plan.rows
    ]
    return " ".join(words + [f"-{request_id}" for request_id in plan.preempted_ids])


def results_of(plan: StepPlan, token: int = 7, finished: Iterable[str] = ()) -> StepResult:
    """What an executor returns that samples the same token everywhere."""
    sampled = {rows.request_id: token for rows in plan.rows if rows.samples}
    return StepResult(sampled, finished_ids=frozenset(finished))


def take_plan(scheduler: Scheduler, *, latency_sensitive_only: bool = False) -> StepPlan:
    plan = scheduler.schedule(latency_sensitive_only=latency_sensitive_only)
    scheduler.check_integrity()
    assert plan is not None, "expected a plan"
    return plan


def finish_plan(scheduler: Scheduler, plan: StepPlan, finished: Iterable[str] = ()) -> list[str]:
    """Complete a plan; ids of the requests that finished with it."""
    ended = scheduler.complete(plan, results_of(plan, finished=finished))
    scheduler.check_integrity()
    return [request.request_id for request in ended]


def run_step(scheduler: Scheduler) -> str:
    """One step at depth one, as text."""
    plan = take_plan(scheduler)
    finish_plan(scheduler, plan)
    return describe(plan)


def run_steps(scheduler: Scheduler, num_steps: int) -> list[str]:
    return [run_step(scheduler) for _ in range(num_steps)]
