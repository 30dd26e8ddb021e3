"""One plan in the making: rows in their order, within budgets of tokens and of time."""

from collections.abc import Iterable
from math import inf

from scheduler.lane_limits import NO_LANES, LaneLimits
from scheduler.plan import LaneEntry, PlannedRows, StepPlan
from scheduler.request import Request
from scheduler.step_load import StepLoad

LEAST_CHUNK = 16
"""Tokens of a prompt below which a chunk is not worth what it costs besides them."""


class StepBuilder:
    """Collects rows class by class; within a class single tokens come before prefill chunks."""

    def __init__(self, max_tokens: int, load: StepLoad | None = None) -> None:
        """Without `load` nothing is known of times, and only tokens limit the step."""
        self.budget = max_tokens
        """Tokens that may still join."""
        self.budget_s = inf
        """Seconds that the step may take."""
        self.load = load
        self.expected: dict[str, int] = {}
        """Positions of decode rows that the load counts already, by request."""
        self.num_passed_over = 0
        """Running requests of the class that found no place for any of their prompt's tokens."""
        self._single_rows: list[PlannedRows] = []
        self._chunk_rows: list[PlannedRows] = []
        self._closed_rows: list[PlannedRows] = []

    def expect_decodes(self, requests: Iterable[Request]) -> None:
        """Counts their next rows in advance: what else joins must leave them their time."""
        if self.load is None:
            return
        self.expected = {request.request_id: request.num_scheduled for request in requests}
        self.load.add_decodes(self.expected.values())

    def expect_decodes_in_time(
        self, plannable: Iterable[tuple[Request, int]], most_s: float
    ) -> None:
        """Counts single tokens in advance if there is time for them all: prompts between them get
        what is left. The step may take as long as they need, up to `most_s`."""
        if self.load is None or self.budget_s == inf:
            return
        expected = {request.request_id: request.num_scheduled for request, n in plannable if n == 1}
        seconds = self.load.seconds_with_decodes(expected.values())
        if seconds <= max(self.budget_s, most_s):
            self.budget_s = max(self.budget_s, seconds)
            self.expected = expected
            self.load.add_decodes(expected.values())

    def leave_time_for_chunk(self, plannable: Iterable[tuple[Request, int]], most_s: float) -> None:
        """The step may take as long as the least chunk of the first prompt among these needs, if
        that is not more than `most_s`."""
        if self.load is None or self.budget_s == inf:
            return
        for request, num_tokens in plannable:
            if num_tokens > 1:
                least = min(num_tokens, LEAST_CHUNK)
                seconds = self.load.seconds_with(request.num_scheduled, least)
                if self.budget_s < seconds <= most_s:
                    self.budget_s = seconds
                return

    def most_tokens(self, request: Request, num_wanted: int, *, at_least: int = 0) -> int:
        """Of a request's next tokens, as many as the budgets allow.

        A part of a prompt that is hardly worth a chunk is left out, or, with `at_least`, joins
        whatever it takes.
        """
        most = num_wanted if num_wanted < self.budget else self.budget
        if most <= 0 or self.load is None or self.budget_s == inf:
            return most if most > 0 else 0
        if request.request_id in self.expected:
            return most
        fitting = self.load.most_tokens(request.num_scheduled, most, self.budget_s)
        if fitting < most and fitting < LEAST_CHUNK:
            return min(most, at_least)
        return max(fitting, min(most, at_least))

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
        token_ids: tuple[int, ...] | None
        if start >= num_known:
            # A token not known yet is always alone: it is the next one of a decode.
            token_ids = None
        elif num_tokens == 1:
            token_ids = (request.token_ids[start],)
        else:
            token_ids = tuple(request.token_ids[start:end])
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
        if self.load is not None and self.expected.pop(request.request_id, None) is None:
            self.load.add(start, num_tokens, samples=samples)
        self.budget -= num_tokens
        request.num_scheduled = end
        request.num_pending_samples += samples
        request.num_plans_in_flight += 1

    def add_decode(self, request: Request) -> None:
        """Plan the next token of a request, whose table covers it and whose time, where times are
        known, the load counts already."""
        start = request.num_scheduled
        is_known = start < len(request.token_ids)
        token_ids = (request.token_ids[start],) if is_known else None
        self._single_rows.append(
            PlannedRows(
                request.request_id,
                request.slot,
                request.service_class,
                start,
                1,
                token_ids,
                True,
                len(request.block_ids),
                (),
            )
        )
        self.expected.pop(request.request_id, None)
        self.budget -= 1
        request.num_scheduled = start + 1
        request.num_pending_samples += 1
        request.num_plans_in_flight += 1

    def begin_best_effort(
        self, max_tokens_beside_ls: int, max_tokens: int | None, max_s: float = inf
    ) -> None:
        """Close the latency-sensitive part; if it has rows, they limit what may follow."""
        self._close_class()
        self.num_passed_over = 0
        self.forget_absent()
        if self.load is not None:
            self.load.end_urgent()
        if self._closed_rows:
            self.budget = min(self.budget, max_tokens_beside_ls)
        if max_tokens is not None:
            self.budget = min(self.budget, max_tokens)
        self.budget_s = min(self.budget_s, max_s)
        if self.load is not None and self._closed_rows:
            self.budget_s = max(self.budget_s, self.load.seconds)

    def lane_limits(self, max_rows: int) -> LaneLimits:
        """What the time that is left allows, with up to `max_rows` rows at a layer."""
        self.forget_absent()
        if self.load is None or self.budget_s == inf or not max_rows:
            return LaneLimits(max_rows)
        bare_s = self.load.seconds
        if bare_s >= self.budget_s:
            return NO_LANES
        return LaneLimits(max_rows, self.load.lane_rows_s(max_rows), self.budget_s - bare_s)

    @property
    def is_beside_urgent(self) -> bool:
        """Whether best-effort rows join latency-sensitive ones."""
        return bool(self._closed_rows)

    @property
    def has_rows(self) -> bool:
        return bool(self._closed_rows or self._single_rows or self._chunk_rows)

    def finish(
        self,
        plan_id: int,
        preempted_ids: tuple[str, ...],
        lane_entries: tuple[LaneEntry, ...],
        lane_limits: LaneLimits,
    ) -> StepPlan:
        self._close_class()
        self.forget_absent()
        return StepPlan(
            plan_id,
            tuple(self._closed_rows),
            preempted_ids,
            lane_entries,
            lane_limits,
            0.0 if self.load is None else self.load.seconds,
            self.budget_s,
            0.0 if self.load is None else self.load.urgent_s,
        )

    def forget_absent(self) -> None:
        """Expected decodes that found no room take no time."""
        if self.load is not None and self.expected:
            self.load.add_decodes(self.expected.values(), sign=-1)
            self.expected = {}

    def _close_class(self) -> None:
        self._closed_rows += self._single_rows
        self._closed_rows += self._chunk_rows
        self._single_rows.clear()
        self._chunk_rows.clear()
