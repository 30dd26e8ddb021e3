"""The shape of a step, from its plan."""

from scheduler.plan import StepPlan
from scheduler.step_load import count_pairs
from scheduler.step_time import StepShape


def shape_of(plan: StepPlan) -> StepShape:
    """Without lane rows, which the plan does not know; a chunk of one token is a decode row."""
    singles = [rows for rows in plan.rows if rows.num_tokens == 1]
    chunks = [rows for rows in plan.rows if rows.num_tokens > 1]
    return StepShape(
        num_decode_rows=len(singles),
        decode_context_tokens=sum(rows.start + 1 for rows in singles),
        num_prefill_tokens=sum(rows.num_tokens for rows in chunks),
        prefill_pairs=sum(count_pairs(rows.start, rows.num_tokens) for rows in chunks),
        prefill_context_tokens=sum(rows.start + rows.num_tokens for rows in chunks),
        num_sampled_rows=sum(rows.samples for rows in plan.rows),
        num_prefill_chunks=len(chunks),
    )
