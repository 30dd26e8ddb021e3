"""What a reader must know of scenes of control before their figures."""

from pathlib import Path

from omniserve.bench.colocate.control.capacity import CAPACITY_SHARE, NUM_WINDOWS_AT_EDGE
from omniserve.bench.colocate.control.conditions import NUM_SATURATING
from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.control.loads import LOADS, SLICE_S
from omniserve.bench.colocate.plan import Plan


def control_procedure(plan: Plan, control: ControlPlan) -> list[str]:
    """What every contender of these scenes was given."""
    limits, backlog = plan.limits, plan.backlog
    overload_warm_up_s = control.warm_up_s + LOADS["overload"].build_up_s
    step_times = limits.step_times
    source = "measured by the daemon" if step_times == "auto" else f"from {Path(step_times).name}"
    return [
        "Control: each contender is a daemon of its own. LS alone has all cores that compute, no "
        "best-effort work and no control: it is the measure of the others. With control, steps are "
        f"held to the objectives by step times {source}, and LS requests whose first token would "
        "be late are refused; without control only token budgets limit steps "
        f"({limits.be_tokens_beside_ls} best-effort tokens beside LS, of "
        f"{limits.max_step_tokens}); without admission nobody is refused.",
        f"Objectives of control: {control.ttft_factor:g} times the p50 of TTFT and "
        f"{control.tpot_factor:g} times that of TPOT of LS requests that are alone with a daemon. "
        f"Capacity: the highest rate at which LS alone keeps {CAPACITY_SHARE:.0%} of its requests "
        f"within both, in {NUM_WINDOWS_AT_EDGE} windows together near the edge and in one at rates "
        "that are clearly held or clearly too high. Throughput: the rate at which LS alone answers "
        f"where {NUM_SATURATING} requests are always unfinished; beyond it a queue grows whatever "
        "the server does.",
        f"LS of control: lengths drawn from {plan.trace} as scaled, a rate for every "
        f"{SLICE_S:g} s, as many requests as it says at random times of these, sent whatever the "
        f"server does; the same for all contenders. BE: {backlog.num_requests} requests always "
        f"unfinished, prompts of about {backlog.prompt_tokens} and outputs of about "
        f"{backlog.output_tokens} tokens.",
        "A refused request missed its objectives in shares of all sent, and has no part in shares "
        "of the taken; none is sent again. Goals of attainment are judged on all sent; that "
        "of admission is judged on the taken. Goodput is the output of requests that met "
        "both objectives.",
        f"{control.rounds} rounds of windows of {control.duration_s:g} s after "
        f"{control.warm_up_s:g} s of warm-up ({overload_warm_up_s:g} s of "
        "overload, where a queue has to build up); loads and contenders in turn, another one first "
        "in each round, all daemons resident, each window after all of them rest. Attainment is "
        "that of the requests of all rounds together, with the lowest and the highest round; "
        "best-effort tokens are medians, their ratios are taken within a round.",
    ]
