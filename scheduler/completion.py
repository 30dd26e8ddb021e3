"""What a completed plan changes in a request that is still running."""

from scheduler.plan import PlannedRows, StepResult
from scheduler.request import Request


def record_rows(request: Request, rows: PlannedRows, result: StepResult) -> None:
    """Count the rows as computed and take over the token they sampled."""
    assert request.num_computed == rows.start, (
        f"{rows.request_id}: rows from {rows.start} completed after {request.num_computed}"
    )
    request.num_computed += rows.num_tokens
    if rows.samples:
        request.num_pending_samples -= 1
        request.token_ids.append(result.sampled[rows.request_id])


def is_finished(request: Request, result: StepResult) -> bool:
    """Whether the sequence has reached its length or the engine ended it."""
    return (
        len(request.token_ids) >= request.max_total_tokens
        or request.request_id in result.finished_ids
    )
