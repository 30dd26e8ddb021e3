"""An engine on a clock of its own: steps take what they should, lanes and copies take their time.

It computes nothing. What it checks is that whatever the scheduler hands out can be carried out, and
that everybody gets the tokens that were asked for.
"""

from collections import Counter
from dataclasses import dataclass, field

from builders_scheduler import HostBlockPool
from scheduler_control_checks import ControlChecks

from scheduler import (
    LaneAllowance,
    Offload,
    Request,
    Scheduler,
    SchedulerSettings,
    Status,
    StepPlan,
    StepResult,
)
from scheduler.plan_shape import shape_of
from scheduler.step_time import LinearStepTime, StepCosts

NUM_LAYERS = 2
TOKEN = 7


@dataclass
class Lane:
    """A lane as the engine sees it: idle, in_step, on_host or ready."""

    request: Request
    where: str = "idle"
    layer: int = 0
    is_stopping: bool = False

    def leaves_layer(self) -> bool:
        """Whether it was the last one."""
        self.layer += 1
        has_left = self.layer == NUM_LAYERS
        self.where = "idle" if has_left else "on_host"
        return has_left


@dataclass
class Flight:
    """A plan the engine has, with the lane rows that joined it."""

    plan: StepPlan
    planned_s: float
    entering: list[Lane]
    joining: list[Lane]
    is_interrupted: bool = False


@dataclass
class ClockedEngine:
    """Whoever drives it says what happens next; `drain` lets everything end."""

    settings: SchedulerSettings
    costs: StepCosts
    depth: int
    host_blocks: HostBlockPool | None = None
    now_s: float = 0.0
    last_landed_s: float = 0.0
    requests: dict[str, Request] = field(default_factory=dict)
    """Alive."""
    ended: dict[str, str] = field(default_factory=dict)
    flights: list[Flight] = field(default_factory=list)
    overtaking: list[Flight] = field(default_factory=list)
    """Run before the first of `flights` goes on."""
    lanes: dict[int, Lane] = field(default_factory=dict)
    copies: dict[str, Request] = field(default_factory=dict)
    num_steps: int = 0

    def __post_init__(self) -> None:
        step_time = LinearStepTime(self.costs)
        self.scheduler = Scheduler(self.settings, self.host_blocks, step_time)
        self.checks = ControlChecks(self.scheduler)

    # What a user does.

    def add(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.scheduler.add(request)
        self.checks.note_added(request)

    def abort(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id)
        assert not self.scheduler.abort(request_id)
        self._note_end(request_id, "aborted")
        self._settle()

    def _note_end(self, request_id: str, how: str) -> None:
        assert request_id not in self.ended, f"{request_id} ends twice"
        del self.requests[request_id]
        self.ended[request_id] = how

    # What an engine does.

    def plan(self, best_effort_s: float, *, is_host_active: bool = False) -> bool:
        """A plan behind those in flight."""
        num_ready = Counter(lane.layer for lane in self.lanes.values() if lane.where == "ready")
        before = self.checks.look(self.now_s)
        plan = self.scheduler.schedule(
            best_effort_s=best_effort_s,
            num_ready_lane_rows=num_ready.total(),
            now_s=self.now_s,
            is_host_active=is_host_active,
        )
        self._begin_copies()
        self.checks.check(before, plan)
        if plan is None:
            return False
        self._check_rows(plan)
        self.flights.append(self._depart(plan))
        return True

    @property
    def can_overtake(self) -> bool:
        """Whether the step that runs is of those that may be parked."""
        return bool(self.flights) and all(
            flight.plan.has_best_effort and not flight.plan.has_latency_sensitive
            for flight in self.flights
        )

    def overtake(self) -> bool:
        """A latency-sensitive plan that runs before the ones in flight go on."""
        before = self.checks.look(self.now_s)
        plan = self.scheduler.schedule(latency_sensitive_only=True, now_s=self.now_s)
        self._begin_copies()
        self.checks.check(before, plan)
        if plan is None:
            return False
        assert not plan.has_best_effort and not plan.lane_entries
        self._check_rows(plan)
        for flight in self.flights:
            flight.is_interrupted = True
        self.overtaking.append(self._depart(plan))
        return True

    def _check_rows(self, plan: StepPlan) -> None:
        for rows in plan.rows:
            request = self.requests[rows.request_id]
            assert request.status is Status.RUNNING and rows.slot == request.slot
            assert rows.end < request.max_total_tokens, "computes a token that nothing follows"

    def _depart(self, plan: StepPlan) -> Flight:
        ready = [
            [lane for lane in self.lanes.values() if (lane.where, lane.layer) == ("ready", layer)]
            for layer in range(NUM_LAYERS)
        ]
        granted = LaneAllowance(plan.lane_limits, NUM_LAYERS).grant([len(each) for each in ready])
        self.checks.check_lanes(plan, granted)
        joining = [lane for each, num in zip(ready, granted, strict=True) for lane in each[:num]]
        entering = [self._enter(entry.lane, entry.request_id) for entry in plan.lane_entries]
        for lane in joining:
            lane.where = "in_step"
        return Flight(plan, self.now_s, entering, joining)

    def _enter(self, number: int, request_id: str) -> Lane:
        lane = self.lanes[number]
        assert lane.request.request_id == request_id and not lane.is_stopping
        assert lane.where == "idle" and request_id not in self.copies
        lane.where, lane.layer = "in_step", 0
        return lane

    def complete(self, factor: float, *, stops: bool = False) -> None:
        """The oldest plan is done; it took so many times what its rows should take. With `stops`
        one of the requests that got a token ends with it."""
        flight = (self.overtaking or self.flights).pop(0)
        plan, num_lane_rows = flight.plan, len(flight.joining) / NUM_LAYERS
        shape = shape_of(plan).with_lane_rows(num_lane_rows)
        began_s = max(flight.planned_s, self.last_landed_s)
        self.now_s = max(self.now_s, began_s + factor * self.costs.step_s(shape))
        self.last_landed_s = self.now_s
        for lane in flight.entering:
            lane.where = "on_host"
        exits = [lane for lane in flight.joining if lane.leaves_layer()]
        result = self._result(flight, exits, stops, num_lane_rows)
        due = {
            request_id
            for request_id in (*result.sampled, *result.lane_sampled)
            if len(self.requests[request_id].token_ids) + 1
            >= self.requests[request_id].max_total_tokens
        }
        finished = self.scheduler.complete(plan, result, self.now_s)
        assert {request.request_id for request in finished} == due | result.finished_ids
        for request in finished:
            self._note_end(request.request_id, "finished")
        self.num_steps += 1
        self._settle()

    def _result(
        self, flight: Flight, exits: list[Lane], stops: bool, num_lane_rows: float
    ) -> StepResult:
        sampled = {
            rows.request_id: TOKEN
            for rows in flight.plan.rows
            if rows.samples and rows.request_id in self.requests
        }
        lane_sampled = {
            lane.request.request_id: TOKEN
            for lane in exits
            if lane.request.request_id in self.requests and not lane.is_stopping
        }
        finished_ids = frozenset([*lane_sampled, *sampled][:1] if stops else [])
        return StepResult(sampled, lane_sampled, finished_ids, num_lane_rows, flight.is_interrupted)

    # What a host and its copies do.

    def _begin_copies(self) -> None:
        for copy in self.scheduler.take_copies():
            request = self.requests[copy.request_id]
            if isinstance(copy, Offload):
                assert copy.lane not in self.lanes and request.num_plans_in_flight == 0
                self.lanes[copy.lane] = Lane(request)
            else:
                assert self.lanes[copy.lane].where == "idle"
            self.copies[copy.request_id] = request
        self._settle()

    def land(self, request_id: str) -> None:
        """A copy is done."""
        del self.copies[request_id]
        self.scheduler.copy_landed(request_id)
        self._settle()

    @property
    def on_host(self) -> list[int]:
        return [number for number, lane in self.lanes.items() if lane.where == "on_host"]

    def attend(self, number: int) -> None:
        """The host has attended a row; that of a lane that is stopping joins nothing any more."""
        lane = self.lanes[number]
        lane.where = "idle" if lane.is_stopping else "ready"

    @property
    def quiet_lanes(self) -> list[int]:
        return [n for n, lane in self.lanes.items() if lane.is_stopping and lane.where == "idle"]

    def quieten(self, number: int) -> None:
        del self.lanes[number]
        self.scheduler.lane_is_quiet(number)
        self._settle()

    @property
    def losable(self) -> list[str]:
        """Offloaded requests whose KV may be lost now."""
        return [
            lane.request.request_id
            for lane in self.lanes.values()
            if lane.where != "in_step"
            and not lane.is_stopping
            and lane.request.status is Status.OFFLOADED
        ]

    def lose(self, request_id: str) -> None:
        assert self.scheduler.recompute(request_id)
        self._settle()

    def _settle(self) -> None:
        for number in self.scheduler.take_released_lanes():
            lane = self.lanes[number]
            assert not lane.is_stopping
            lane.is_stopping = True
            if lane.where == "ready":
                lane.where = "idle"
        self.scheduler.check_integrity()
        self.checks.check_fairness(self.now_s)

    # The end.

    def drain(self, *, is_host_there: bool = True) -> None:
        """Let everything end; fails where it does not, or where anything is held afterwards.

        Of a host that is gone for good nobody may enter the lanes any more.
        """
        self.scheduler.offload_allowed = self.scheduler.lanes_open = is_host_there
        # Each round computes a token at least, and those computed again are few.
        tokens_left = sum(each.max_total_tokens for each in self.requests.values())
        for _ in range(200 + 20 * tokens_left):
            self.catch_up()
            while len(self.flights) < self.depth and self.plan(float("inf")):
                pass
            if self.flights or self.overtaking:
                self.complete(1.0)
            elif not (self.copies or self.on_host or self.quiet_lanes):
                break
        assert not self.scheduler.has_unfinished, "requests never end, or no plan is made"
        assert not self.requests and not self.lanes and not self.copies
        assert self.scheduler.counts.num_used_blocks == 0
        assert self.scheduler.counts.num_lanes_in_use == 0
        if self.host_blocks is not None:
            assert self.host_blocks.num_free == self.host_blocks.num_blocks
        self.checks.check_books(self.num_steps)

    def catch_up(self) -> None:
        """All that the host and copies under way have to do gets done."""
        for request_id in list(self.copies):
            self.land(request_id)
        for number in self.on_host:
            self.attend(number)
        for number in self.quiet_lanes:
            self.quieten(number)
