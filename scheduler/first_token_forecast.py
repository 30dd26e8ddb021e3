"""When a latency-sensitive request would have its first token, if it were taken now."""

from collections.abc import Iterable
from math import inf

from scheduler.request import Request
from scheduler.step_load import StepLoad
from scheduler.step_time import StepCosts

_LEAST_SHARE = 0.1
"""Of a step that prompts get beside decodes, however little time these leave."""


def prefill_s(costs: StepCosts, num_done: int, num_left: int, max_step_tokens: int) -> float:
    """Of `num_left` tokens of one prompt, in chunks as long as a step may be."""
    total_s = 0.0
    while num_left > 0:
        num_tokens = min(num_left, max_step_tokens)
        total_s += StepLoad(costs).seconds_with(num_done, num_tokens)
        num_done, num_left = num_done + num_tokens, num_left - num_tokens
    return total_s


def queue_s(
    costs: StepCosts,
    prompts: Iterable[Request],
    decodes: Iterable[Request],
    token_s: float,
    max_step_tokens: int,
) -> float:
    """Until all `prompts` have had their first tokens, first come first served.

    All that is queued is reckoned as one batch, as in the admission test of OmniServe (its section
    3.3.2). `decodes` keep their pace of one token every `token_s` meanwhile, so prompts get what
    is left of each step; best-effort work waits.
    """
    work_s = sum(
        prefill_s(
            costs,
            request.num_scheduled,
            len(request.token_ids) - request.num_scheduled,
            max_step_tokens,
        )
        for request in prompts
    )
    load = StepLoad(costs)
    for request in decodes:
        load.add(request.num_scheduled, 1, samples=True)
    if not load.num_rows or token_s == inf:
        return work_s
    return work_s / max(_LEAST_SHARE, 1.0 - load.seconds / token_s)
