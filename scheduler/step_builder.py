"""One plan in the making: rows in their order, within token budgets."""

from scheduler.plan import LaneEntry, PlannedRows, StepPlan
from scheduler.request import Request


class StepBuilder:
    """Collects rows class by class; within a class single tokens come before prefill chunks."""

    def __init__(self, max_tokens: int) -> None:
        self.budget = max_tokens
        """Tokens that may still join."""
        self._single_rows: list[PlannedRows] = []
        self._chunk_rows: list[PlannedRows] = []
        self._closed_rows: list[PlannedRows] = []

    def add(
        self,
        request: Request,
        num_tokens: int,
        first_new_block: int,
        new_block_ids: tuple[int, ...],
    ) -> None:
        """Plan the next `num_tokens` tokens of a request whose table covers them."""
        start = request.num_scheduled
        end = start + num_tokens
        num_known = len(request.token_ids)
        samples = end == num_known + request.num_pending_samples
        # A token not known yet is always alone: it is the next one of a decode.
        token_ids = tuple(request.token_ids[start:end]) if start < num_known else None
        rows = PlannedRows(
            request.request_id,
            request.slot,
            request.service_class,
            start,
            num_tokens,
            token_ids,
            samples,
            first_new_block,
            new_block_ids,
        )
        (self._chunk_rows if num_tokens > 1 else self._single_rows).append(rows)
        self.budget -= num_tokens
        request.num_scheduled = end
        request.num_pending_samples += samples
        request.num_plans_in_flight += 1

    def begin_best_effort(self, max_tokens_beside_ls: int, max_tokens: int | None) -> None:
        """Close the latency-sensitive part; if it has rows, they limit what may follow."""
        self._close_class()
        if self._closed_rows:
            self.budget = min(self.budget, max_tokens_beside_ls)
        if max_tokens is not None:
            self.budget = min(self.budget, max_tokens)

    @property
    def has_rows(self) -> bool:
        return bool(self._closed_rows or self._single_rows or self._chunk_rows)

    def finish(
        self,
        plan_id: int,
        preempted_ids: tuple[str, ...],
        lane_entries: tuple[LaneEntry, ...],
        max_lane_rows: int,
    ) -> StepPlan:
        self._close_class()
        rows = tuple(self._closed_rows)
        return StepPlan(plan_id, rows, preempted_ids, lane_entries, max_lane_rows)

    def _close_class(self) -> None:
        self._closed_rows += self._single_rows
        self._closed_rows += self._chunk_rows
        self._single_rows.clear()
        self._chunk_rows.clear()
