"""Best-effort work where memory is short: what was begun goes before what was not."""

from dataclasses import replace

from builders_control import COSTS, SETTINGS, Clocked, make_request
from builders_scheduler import HostBlockPool

from scheduler import Objectives, PiggybackLimits, Scheduler, SchedulerSettings, ServiceClass
from scheduler.plan import StepPlan

STEEP = replace(COSTS, prefill_context_token_s=5e-5)
"""The first tokens of a prompt take much less time than those that attend to many."""
URGENT = Objectives(0.1, 15e-3)
"""So short a time to the first token leaves a step, where memory is short, 12 ms."""
PATIENT = Objectives(0.4, 15e-3)
"""This leaves 24 ms: the first tokens of a prompt find place, later ones do not."""


def begun_after(plans: list[StepPlan]) -> list[int]:
    """Best-effort prompts that have some of their tokens computed but not all, after each plan."""
    begun: set[str] = set()
    numbers = []
    for plan in plans:
        for rows in plan.rows:
            if rows.service_class is ServiceClass.BEST_EFFORT:
                begun.discard(rows.request_id) if rows.samples else begun.add(rows.request_id)
        begun -= set(plan.preempted_ids)
        numbers.append(len(begun))
    return numbers


def test_few_are_begun_at_a_time() -> None:
    clocked = Clocked(costs=STEEP)
    clocked.scheduler.add(make_request("ls", 20, 2, 0.0, PATIENT))
    for number in range(24):
        clocked.scheduler.add(make_request(f"be{number}", 150 + 5 * number, 40))
    assert len(clocked.run()) == 25
    assert max(begun_after(clocked.plans)) <= 2


def test_decodes_that_hold_memory_all_go_on() -> None:
    clocked = Clocked()
    clocked.scheduler.add(make_request("ls", 20, 2, 0.0, URGENT))
    for number in range(12):
        clocked.scheduler.add(make_request(f"be{number}", 120, 40))
    clocked.run()
    # What a step may take for the sake of prompts that may come has room for some of them only.
    decoding: set[str] = set()
    starved = 0
    for plan in clocked.plans:
        planned = {rows.request_id for rows in plan.rows}
        decoding -= set(plan.preempted_ids)
        starved += len(decoding - planned) if plan.num_tokens == len(plan.rows) else 0
        decoding |= {rows.request_id for rows in plan.rows if rows.samples}
        decoding -= {name for name in decoding if is_last(clocked, name, plan)}
    assert starved == 0


def is_last(clocked: Clocked, name: str, plan: StepPlan) -> bool:
    """Whether no later plan has rows of the request."""
    later = clocked.plans[clocked.plans.index(plan) + 1 :]
    return all(rows.request_id != name for each in later for rows in each.rows)


def test_host_memory_counts_while_decodes_may_go_there() -> None:
    settings = replace(
        SETTINGS, num_blocks=32, kv_reserve_share=0.0, piggyback=PiggybackLimits(8, 4, 4)
    )
    assert num_admitted(settings, offload_allowed=True) > num_admitted(
        settings, offload_allowed=False
    )
    assert num_admitted(settings, offload_allowed=False) == 1


def num_admitted(settings: SchedulerSettings, *, offload_allowed: bool) -> int:
    scheduler = Scheduler(settings, HostBlockPool(256))
    scheduler.offload_allowed = offload_allowed
    for number in range(4):
        scheduler.add(make_request(f"be{number}", 20, 400))
    plan = scheduler.schedule()
    assert plan is not None
    return len({rows.request_id for rows in plan.rows})
