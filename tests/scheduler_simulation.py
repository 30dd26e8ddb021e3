"""A scheduler driven by a model of an executor that checks every plan it is given.

The KV memory of the model maps (layer, block, offset) to the whole token prefix that was written
there, so a row sees a wrong context whenever a table is stale, a block is shared before it was
written, or memory in use is given away. Two layers are enough for a step that stops between them.
"""

from dataclasses import dataclass, field

from builders_scheduler import HostBlockPool
from scheduler_clients import Client, Prefix, find_outputs, sample
from scheduler_host_model import HostModel, Lane, LaneRows, Memory
from scheduler_plan_checks import check_shape
from scheduler_waiting import RoomBefore

from scheduler import HostBlocks, Offload, PlannedRows, Request, Scheduler, StepPlan, StepResult

NUM_LAYERS = 2


@dataclass
class Flight:
    """A plan the executor has, and how many layers of it ran."""

    plan: StepPlan
    lane_rows: LaneRows
    layers_done: int = 0
    sampled: dict[str, int] = field(default_factory=dict)
    exits: list[Lane] = field(default_factory=list)


class Simulation:
    """Takes plans, runs them layer by layer, completes them; asserts the rules all along."""

    def __init__(self, scheduler: Scheduler, host_blocks: HostBlocks | None = None) -> None:
        self.scheduler = scheduler
        self.settings = scheduler.settings
        self.clients: dict[str, Client] = {}
        self.flights: list[Flight] = []
        """In order; those of `overtaking` run before any of these goes on."""
        self.overtaking: list[Flight] = []
        self.tables: dict[int, list[int]] = {}
        self.last_tokens: dict[int, int] = {}
        self.memory: Memory = {}
        blocks = HostBlockPool(0) if host_blocks is None else host_blocks
        self.host = HostModel(scheduler, blocks, NUM_LAYERS, self.memory)
        self.preempted: set[str] = set()
        """Sent back by the scheduler, and not reported by a plan yet."""

    # What a user does.

    def add(self, request: Request, stop: Prefix = ()) -> None:
        outputs = find_outputs(request, stop, self.settings.max_model_len)
        client = Client(request, len(self.clients), tuple(request.token_ids), outputs)
        self.clients[request.request_id] = client
        self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        client = self.clients[request_id]
        assert self.scheduler.abort(request_id) is not client.ended
        assert not self.scheduler.abort(request_id)
        if not client.ended:
            client.ended = client.aborted = True
            self.preempted.discard(request_id)
            self._leave_if_drained(client)
        self.scheduler.check_integrity()

    # What an engine does.

    def schedule(self) -> bool:
        """Make a plan behind those in flight."""
        return self._schedule(self.flights, latency_sensitive_only=False)

    def overtake(self) -> bool:
        """Make a latency-sensitive plan that runs before the ones in flight go on."""
        assert all(flight.plan.has_best_effort for flight in self.flights)
        return self._schedule(self.overtaking, latency_sensitive_only=True)

    def advance(self) -> None:
        """Run one more layer of the first plan that is not through."""
        for flight in self.overtaking or self.flights:
            if flight.layers_done < NUM_LAYERS:
                self._run_layer(flight)
                return

    @property
    def may_drop(self) -> bool:
        """Whether the last plan stands amid its layers, and nothing but their time is lost with
        it."""
        if not self.flights:
            return False
        flight = self.flights[-1]
        stands = flight.layers_done < NUM_LAYERS and not flight.plan.has_latency_sensitive
        return stands and not flight.plan.max_lane_rows

    def drop(self) -> None:
        """Do not go on with the last plan."""
        plan = self.flights.pop().plan
        self.scheduler.drop(plan)
        for rows in plan.rows:
            client = self.clients[rows.request_id]
            client.num_in_flight -= 1
            if not client.ended:
                client.scheduled = rows.start
                client.num_sampled -= rows.samples
                assert client.slot is not None
                del self.tables[client.slot][-(-rows.start // self.settings.block_size) :]
            self._leave_if_drained(client)
        self.scheduler.check_integrity()

    def complete(self) -> None:
        """Run the oldest plan to its end and hand the scheduler its result."""
        flight = (self.overtaking or self.flights).pop(0)
        while flight.layers_done < NUM_LAYERS:
            self._run_layer(flight)
        sampled = {
            request_id: self._receive(request_id, token)
            for request_id, token in flight.sampled.items()
            if not self.clients[request_id].ended
        }
        exits = [lane for lane in flight.exits if self.host.leave_step(lane)]
        lane_sampled = {
            lane.client.name: self._receive(
                lane.client.name, sample(lane.client.tokens[: lane.position + 1])
            )
            for lane in exits
        }
        ended = {r for r in (*sampled, *lane_sampled) if self.clients[r].ended}
        finished = {r for r in ended if not self.clients[r].is_at_limit}
        result = StepResult(sampled, lane_sampled, frozenset(finished))
        assert {r.request_id for r in self.scheduler.complete(flight.plan, result)} == ended
        for request_id in (*sampled, *lane_sampled):
            client = self.clients[request_id]
            assert tuple(client.request.token_ids) == client.tokens[: client.known]
        for rows in flight.plan.rows:
            client = self.clients[rows.request_id]
            client.num_in_flight -= 1
            self._leave_if_drained(client)
        self.scheduler.check_integrity()

    def _receive(self, request_id: str, token: int) -> int:
        client = self.clients[request_id]
        assert token == client.outputs[client.received], f"{request_id}: wrong or repeated"
        client.received += 1
        client.ended = client.received == len(client.outputs)
        return token

    def land(self, request_id: str) -> None:
        """A copy is done."""
        copy = self.host.land(request_id)
        client = self.clients[request_id]
        if not isinstance(copy, Offload):
            client.is_swapping_in = False
            if client.is_waiting:
                self._drop_table(client)
            self._leave_if_drained(client)
        self.scheduler.check_integrity()

    def quieten(self) -> None:
        """Take note of released lanes, and say which of them are quiet."""
        self.host.note_released()
        for number in self.host.list_quiet():
            self.host.quieten(number)
        self.scheduler.check_integrity()

    def fail(self, lane: Lane) -> None:
        self.host.fail(lane)
        self.scheduler.check_integrity()

    def drain(self, depth: int) -> None:
        """Let everything end; fails if it does not, or if anything is held afterwards."""
        # Each round computes at least one token, and recomputed ones are few.
        for _ in range(200 + 60 * len(self.clients) * self.settings.max_model_len):
            while len(self.flights) < depth and self.schedule():
                pass
            if self.flights or self.overtaking:
                self.complete()
            elif not (self.host.copies or self.host.lanes):
                break
            self.let_host_catch_up()
        assert not self.scheduler.has_unfinished, "requests never finish, or no plan is made"
        assert all(client.ended for client in self.clients.values())
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (0, 0)
        assert self.scheduler.counts.num_used_blocks == 0
        assert not self.tables and not self.scheduler.awaits_first_token
        self.host.check_empty()
        self.scheduler.check_integrity()

    def let_host_catch_up(self) -> None:
        """All that the host and copies under way have to do gets done."""
        for request_id in list(self.host.copies):
            self.land(request_id)
        for lane in list(self.host.lanes.values()):
            if lane.where == "on_host":
                self.host.attend(lane.number)
        self.quieten()

    # How the executor model works.

    def _schedule(self, queue: list[Flight], latency_sensitive_only: bool) -> bool:
        clients = list(self.clients.values())
        before = RoomBefore(self.settings, clients, self.tables, self.host.device_tables)
        num_ready = self.host.num_ready
        plan = self.scheduler.schedule(
            latency_sensitive_only=latency_sensitive_only, num_ready_lane_rows=num_ready
        )
        self.scheduler.check_integrity()
        withheld = self._list_beside_best_effort() if latency_sensitive_only else set()
        # Their slots may be those of requests that come back.
        self._take_back(before, plan)
        self.begin_copies()
        if plan is not None:
            check_shape(plan, self.settings, latency_sensitive_only, num_ready)
            for rows in plan.rows:
                self._take_rows(rows)
            queue.append(Flight(plan, self.host.take_rows(plan)))
        before.check(plan, withheld)
        return plan is not None

    def begin_copies(self) -> None:
        """Those that were decided."""
        for copy in self.scheduler.take_copies():
            client = self.clients[copy.request_id]
            if isinstance(copy, Offload):
                assert client.slot is not None and self.scheduler.offload_allowed
                self.host.begin_out(copy, client, self.tables[client.slot])
                self._drop_table(client)
            else:
                assert client.slot is None and copy.slot not in self.tables
                self.host.begin_in(copy, client)
                client.slot, self.tables[copy.slot] = copy.slot, list(copy.block_table)
                client.scheduled, client.num_sampled = client.known - 1, client.received
                client.is_swapping_in = True

    def _drop_table(self, client: Client) -> None:
        assert client.slot is not None
        del self.tables[client.slot]
        client.slot = None

    def _list_beside_best_effort(self) -> set[str]:
        """Requests in flight in one plan with BE rows, so that they cannot overtake it."""
        plans = [flight.plan for flight in self.flights if flight.plan.has_best_effort]
        return {rows.request_id for plan in plans for rows in plan.rows}

    def _take_back(self, before: RoomBefore, plan: StepPlan | None) -> None:
        """Those who were sent back have nothing any more; the next plan that is made names them."""
        clients = list(self.clients.values())
        preempted = [c for c in clients if c.slot is not None and c.is_waiting]
        gainers = [self.clients[rows.request_id] for rows in plan.rows] if plan else []
        if self.settings.piggyback is not None:
            # One may wait for what is being copied to the host, and have no rows yet.
            gainers = [client for client in clients if not client.ended]
        before.check_victims(preempted, gainers)
        for client in preempted:
            self._drop_table(client)
            self.preempted.add(client.name)
        if plan is not None:
            assert {*plan.preempted_ids} == self.preempted
            self.preempted.clear()

    def _take_rows(self, rows: PlannedRows) -> None:
        client = self.clients[rows.request_id]
        request = client.request
        block_size = self.settings.block_size
        assert not client.ended
        if client.slot is None:
            assert rows.first_new_block == 0 and 0 <= rows.slot < self.settings.max_running_requests
            assert rows.slot not in self.tables, f"slot {rows.slot} is in use"
            assert rows.start % block_size == 0 and rows.start < client.known
            assert rows.start == 0 or self.settings.prefix_caching
            client.slot, client.num_sampled = rows.slot, client.received
            self.tables[rows.slot] = []
        else:
            assert (rows.slot, rows.start) == (client.slot, client.scheduled)
        assert rows.num_tokens >= 1 and rows.service_class is request.service_class
        table = self.tables[rows.slot]
        assert rows.first_new_block == len(table)
        table += rows.new_block_ids
        end = rows.start + rows.num_tokens
        assert len(table) == -(-end // block_size)
        assert len(set(table)) == len(table)
        assert {*table} <= {*range(self.settings.num_blocks)}
        assert end < request.max_total_tokens, "computes a token that nothing follows"
        assert rows.samples == (end == len(client.prompt) + client.num_sampled)
        if rows.start < client.known:
            assert rows.token_ids == client.tokens[rows.start : end]
        else:
            assert rows.token_ids is None and rows.num_tokens == 1
            assert not request.needs_known_tokens
        client.scheduled = end
        client.num_sampled += rows.samples
        client.num_in_flight += 1

    def _run_layer(self, flight: Flight) -> None:
        layer = flight.layers_done
        inputs = {rows.request_id: self._input_tokens(rows) for rows in flight.plan.rows}
        for rows in flight.plan.rows:
            prefix = self.clients[rows.request_id].true_prefix(rows.start)
            for position, token in enumerate(inputs[rows.request_id], start=rows.start):
                prefix += (token,)
                self.memory[layer, *self._place(rows.slot, position)] = prefix
        for rows in flight.plan.rows:
            end = rows.start + rows.num_tokens
            expected = self.clients[rows.request_id].true_prefix(end)
            for position in range(end):
                written = self.memory.get((layer, *self._place(rows.slot, position)))
                where = f"{rows.request_id} layer {layer} position {position}"
                assert written == expected[: position + 1], f"{where} reads {written}"
            if rows.samples and layer == NUM_LAYERS - 1:
                flight.sampled[rows.request_id] = sample(expected)
                self.last_tokens[rows.slot] = sample(expected)
        flight.exits += self.host.run_layer(flight.lane_rows, layer)
        flight.layers_done += 1

    def _input_tokens(self, rows: PlannedRows) -> Prefix:
        if rows.token_ids is None:
            return (self.last_tokens[rows.slot],)
        return rows.token_ids

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        block_index, offset = divmod(position, self.settings.block_size)
        return self.tables[slot][block_index], offset

    def _leave_if_drained(self, client: Client) -> None:
        is_in_use = client.num_in_flight > 0 or client.is_swapping_in
        if client.ended and client.slot is not None and not is_in_use:
            self._drop_table(client)
