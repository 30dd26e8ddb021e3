"""A scheduler driven by a model of an executor that checks every plan it is given.

The KV memory of the model maps (layer, block, offset) to the whole token prefix that was written
there, so a row sees a wrong context whenever a table is stale, a block is shared before it was
written, or memory in use is given away. Two layers are enough for a step that stops between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

from builders_scheduler import BE, LS

from scheduler import PlannedRows, Request, Scheduler, ServiceClass, StepPlan, StepResult

NUM_LAYERS = 2
VOCAB_SIZE = 3

Prefix = tuple[int, ...]


def sample(prefix: Prefix) -> int:
    """The token that the modelled network puts after a prefix; few tokens, so prefixes recur."""
    return crc32(bytes(prefix)) % VOCAB_SIZE


def find_outputs(request: Request, stop: Prefix, max_model_len: int) -> list[int]:
    """What a request must produce, whatever runs beside it: the oracle."""
    tokens, outputs = tuple(request.token_ids), list[int]()
    while len(outputs) < request.max_tokens and len(tokens) < max_model_len:
        outputs.append(sample(tokens))
        tokens += (outputs[-1],)
        if stop and tuple(outputs[-len(stop) :]) == stop:
            break
    return outputs


@dataclass
class Client:
    """One request as its sender and the executor see it."""

    request: Request
    prompt: Prefix
    outputs: list[int]
    """What the oracle says will come."""
    received: int = 0
    ended: bool = False
    aborted: bool = False
    slot: int | None = None
    scheduled: int = 0
    num_sampled: int = 0
    """Tokens that plans were asked to sample since admission, and those known then."""
    num_in_flight: int = 0

    @property
    def known(self) -> int:
        return len(self.prompt) + self.received

    @property
    def tokens(self) -> Prefix:
        return self.prompt + tuple(self.outputs)

    @property
    def is_plannable(self) -> bool:
        """Whether a running request has a token that could be computed now."""
        pending = self.num_sampled > self.received
        at_end = len(self.prompt) + self.num_sampled >= self.request.max_total_tokens
        waits = self.request.needs_known_tokens
        return self.slot is not None and not self.ended and not (pending and (at_end or waits))

    @property
    def num_unscheduled(self) -> int:
        return len(self.prompt) + self.num_sampled - self.scheduled


@dataclass
class Flight:
    """A plan the executor has, and how many layers of it ran."""

    plan: StepPlan
    layers_done: int = 0
    sampled: dict[str, int] = field(default_factory=dict)


class Simulation:
    """Takes plans, runs them layer by layer, completes them; asserts the rules all along."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.settings = scheduler.settings
        self.clients: dict[str, Client] = {}
        self.flights: list[Flight] = []
        """In order; those of `overtaking` run before any of these goes on."""
        self.overtaking: list[Flight] = []
        self.tables: dict[int, list[int]] = {}
        self.last_tokens: dict[int, int] = {}
        self.memory: dict[tuple[int, int, int], Prefix] = {}

    # What a user does.

    def add(self, request: Request, stop: Prefix = ()) -> None:
        outputs = find_outputs(request, stop, self.settings.max_model_len)
        client = Client(request, tuple(request.token_ids), outputs)
        self.clients[request.request_id] = client
        self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        client = self.clients[request_id]
        assert self.scheduler.abort(request_id) is not client.ended
        assert not self.scheduler.abort(request_id)
        if not client.ended:
            client.ended = client.aborted = True
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

    def complete(self) -> None:
        """Run the oldest plan to its end and hand the scheduler its result."""
        flight = (self.overtaking or self.flights).pop(0)
        while flight.layers_done < NUM_LAYERS:
            self._run_layer(flight)
        sampled, finished = {}, set()
        for request_id, token in flight.sampled.items():
            client = self.clients[request_id]
            if client.ended:
                continue
            assert token == client.outputs[client.received], f"{request_id}: wrong or repeated"
            sampled[request_id] = token
            client.received += 1
            if client.received == len(client.outputs):
                client.ended = True
                if client.known < client.request.max_total_tokens:
                    finished.add(request_id)
        ended = self.scheduler.complete(flight.plan, StepResult(sampled, frozenset(finished)))
        expected = [r for r in sampled if self.clients[r].ended]
        assert sorted(r.request_id for r in ended) == sorted(expected)
        for rows in flight.plan.rows:
            client = self.clients[rows.request_id]
            client.num_in_flight -= 1
            if not client.aborted:
                assert tuple(client.request.token_ids) == client.tokens[: client.known]
            self._leave_if_drained(client)
        self.scheduler.check_integrity()

    def drain(self, depth: int) -> None:
        """Let everything end; fails if it does not, or if anything is held afterwards."""
        # Each round computes at least one token, and recomputed ones are few.
        for _ in range(200 + 60 * len(self.clients) * self.settings.max_model_len):
            while len(self.flights) < depth and self.schedule():
                pass
            if not self.flights and not self.overtaking:
                break
            self.complete()
        assert not self.scheduler.has_unfinished, "requests never finish, or no plan is made"
        assert all(client.ended for client in self.clients.values())
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (0, 0)
        assert self.scheduler.num_used_blocks == 0
        assert not self.tables and not self.scheduler.awaits_first_token
        self.scheduler.check_integrity()

    # How the executor model works.

    def _schedule(self, queue: list[Flight], latency_sensitive_only: bool) -> bool:
        before = self._who_could_yield()
        plan = self.scheduler.schedule(latency_sensitive_only=latency_sensitive_only)
        self.scheduler.check_integrity()
        if plan is not None:
            self._take_back(plan)
            self._check_shape(plan, latency_sensitive_only)
            for rows in plan.rows:
                self._take_rows(rows)
            queue.append(Flight(plan))
        self._check_nobody_waits_in_vain(plan, before, latency_sensitive_only)
        return plan is not None

    def _take_back(self, plan: StepPlan) -> None:
        for request_id in plan.preempted_ids:
            client = self.clients[request_id]
            assert client.slot is not None and not client.ended, f"{request_id} does not run"
            assert client.num_in_flight == 0, f"{request_id} preempted in flight"
            del self.tables[client.slot]
            client.slot = None
        preempted = [self.clients[request_id].request for request_id in plan.preempted_ids]
        gainers = [self.clients[rows.request_id].request for rows in plan.rows]
        for victim in preempted:
            assert any(_comes_before(gainer, victim) for gainer in gainers)
            if victim.service_class is LS:
                assert not list(self._running(BE)), "LS preempted while BE holds memory"
        for running in [*self._running(LS), *self._running(BE)]:
            victims = [other for other in preempted if other.service_class is LS]
            assert all(_comes_before(running.request, victim) for victim in victims)

    def _check_shape(self, plan: StepPlan, latency_sensitive_only: bool) -> None:
        settings = self.settings
        num_ls, num_be = (
            sum(rows.num_tokens for rows in plan.rows if rows.service_class is service_class)
            for service_class in (LS, BE)
        )
        assert 0 < plan.num_tokens == num_ls + num_be <= settings.max_step_tokens
        assert not (num_ls and num_be > settings.best_effort_tokens_beside_ls)
        assert not (latency_sensitive_only and num_be)
        order = [(rows.service_class is BE, rows.num_tokens > 1) for rows in plan.rows]
        assert order == sorted(order)
        assert len({rows.request_id for rows in plan.rows}) == len(plan.rows)
        assert not {rows.request_id for rows in plan.rows} & {*plan.preempted_ids}

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
            prefix = self._true_prefix(rows, rows.start)
            for position, token in enumerate(inputs[rows.request_id], start=rows.start):
                prefix += (token,)
                self.memory[layer, *self._place(rows.slot, position)] = prefix
        for rows in flight.plan.rows:
            end = rows.start + rows.num_tokens
            expected = self._true_prefix(rows, end)
            for position in range(end):
                written = self.memory.get((layer, *self._place(rows.slot, position)))
                where = f"{rows.request_id} layer {layer} position {position}"
                assert written == expected[: position + 1], f"{where} reads {written}"
            if rows.samples and layer == NUM_LAYERS - 1:
                flight.sampled[rows.request_id] = sample(expected)
                self.last_tokens[rows.slot] = sample(expected)
        flight.layers_done += 1

    def _input_tokens(self, rows: PlannedRows) -> Prefix:
        if rows.token_ids is None:
            return (self.last_tokens[rows.slot],)
        return rows.token_ids

    def _true_prefix(self, rows: PlannedRows, end: int) -> Prefix:
        """What precedes `end`. Behind its last output a request may compute one row too many."""
        client = self.clients[rows.request_id]
        tokens = client.tokens
        while len(tokens) < end:
            tokens += (sample(tokens),)
        return tokens[:end]

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        block_index, offset = divmod(position, self.settings.block_size)
        return self.tables[slot][block_index], offset

    def _leave_if_drained(self, client: Client) -> None:
        if client.ended and client.num_in_flight == 0 and client.slot is not None:
            del self.tables[client.slot]
            client.slot = None

    # Who may have to wait, worked out from the model's own tables.

    def _running(self, service_class: ServiceClass) -> Iterator[Client]:
        for client in self.clients.values():
            if client.slot is not None and not client.ended:
                if client.request.service_class is service_class:
                    yield client

    def _who_could_yield(self) -> tuple[int, int, int, int]:
        """Free blocks and slots for LS work if idle BE yields; the same if all BE yields."""

        def count(kept: list[Client]) -> tuple[int, int]:
            slots = [client.slot for client in kept if client.slot is not None]
            held = {block_id for slot in slots for block_id in self.tables[slot]}
            settings = self.settings
            return settings.num_blocks - len(held), settings.max_running_requests - len(slots)

        holders = [client for client in self.clients.values() if client.slot is not None]
        busy = [
            client
            for client in holders
            if client.request.service_class is LS or client.num_in_flight
        ]
        lasting = [client for client in self._running(LS)]
        return *count(busy), *count(lasting)

    def _check_nobody_waits_in_vain(
        self,
        plan: StepPlan | None,
        before: tuple[int, int, int, int],
        latency_sensitive_only: bool,
    ) -> None:
        """The oldest LS request without rows waits for nothing that idle BE could have given."""
        ls_rows = [rows for rows in plan.rows if rows.service_class is LS] if plan else []
        if sum(rows.num_tokens for rows in ls_rows) >= self.settings.max_step_tokens:
            return
        planned = {rows.request_id for rows in ls_rows}
        if plan and any(self.clients[i].request.service_class is LS for i in plan.preempted_ids):
            return
        # At most: blocks of a matched prefix may have been held before.
        num_taken = sum(len(rows.new_block_ids) for rows in ls_rows)
        num_admitted = sum(rows.first_new_block == 0 for rows in ls_rows)
        promised = sum(
            max(0, self._num_promised(client))
            for client in self._running(LS)
            if client.num_unscheduled > 1
        )
        for client in sorted(self.clients.values(), key=_age):
            if client.request.service_class is BE or client.ended:
                continue
            if client.slot is None:
                need, needs_slot = self._num_promised(client) + promised, 1
            elif client.is_plannable and client.request.request_id not in planned:
                if latency_sensitive_only and self._is_beside_best_effort(client):
                    continue
                end = client.scheduled + min(client.num_unscheduled, self.settings.max_step_tokens)
                need, needs_slot = self._num_blocks(end) - len(self.tables[client.slot]), 0
            else:
                continue
            idle_blocks, idle_slots, all_blocks, all_slots = before
            could_now = idle_blocks - num_taken >= need and (
                idle_slots - num_admitted >= needs_slot
            )
            assert not could_now, f"{client.request.request_id} waits in vain"
            could_soon = all_blocks - num_taken >= need and all_slots - num_admitted >= needs_slot
            if could_soon and plan is not None:
                assert not plan.has_best_effort, "BE keeps in flight what LS waits for"
            return

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.settings.block_size)

    def _num_promised(self, client: Client) -> int:
        """Blocks a request lacks for its known tokens and one more, where there will be one."""
        num_tokens = min(client.known + 1, client.request.max_total_tokens - 1)
        held = 0 if client.slot is None else len(self.tables[client.slot])
        return self._num_blocks(num_tokens) - held

    def _is_beside_best_effort(self, client: Client) -> bool:
        """Whether a plan in flight mixes the request with BE rows, so that it cannot overtake."""
        return any(
            flight.plan.has_best_effort
            and any(rows.request_id == client.request.request_id for rows in flight.plan.rows)
            for flight in self.flights
        )


def _age(client: Client) -> int:
    return client.request.arrival_index


def _comes_before(gainer: Request, victim: Request) -> bool:
    if gainer.service_class is not victim.service_class:
        return gainer.service_class is LS
    return gainer.arrival_index < victim.arrival_index
