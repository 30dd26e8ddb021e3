"""The host side of an engine, modelled: lanes, copies under way, and memory checked word by word.

As on the device, memory maps (layer, block, offset) to the whole token prefix that was written
there. A copy spoils where it goes to as it begins, and reads and writes only when it lands, so that
whoever lets go of either side too early is found out.
"""

from dataclasses import dataclass, field

from scheduler_clients import Client, Prefix

from scheduler import (
    Copy,
    HostBlocks,
    LaneEntry,
    Offload,
    Return,
    Scheduler,
    Status,
    StepPlan,
)

Memory = dict[tuple[int, int, int], Prefix]

SPOILT: Prefix = (-1,)


@dataclass
class Lane:
    """A lane as the engine sees it; `where` is idle, in_step, on_host or ready."""

    number: int
    client: Client
    table: list[int] = field(default_factory=list)
    where: str = "idle"
    layer: int = 0
    """At which its row is attended, or waits to join."""
    position: int = -1
    is_stopping: bool = False

    @property
    def has_left(self) -> bool:
        """Whether the lane is its request's no more."""
        stay = self.client.request.stay
        return self.client.ended or stay is None or stay.lane != self.number


@dataclass
class LaneRows:
    """Lane rows of one plan."""

    entering: list[Lane]
    joining: dict[int, list[Lane]]
    """By layer."""


class HostModel:
    """Takes copies and lane rows; whoever drives it says when something has got done."""

    def __init__(
        self,
        scheduler: Scheduler,
        blocks: HostBlocks,
        num_layers: int,
        device_memory: Memory,
    ) -> None:
        self.scheduler = scheduler
        self.blocks = blocks
        self.num_layers = num_layers
        self.block_size = scheduler.settings.block_size
        self.lanes: dict[int, Lane] = {}
        self.copies: dict[str, Copy] = {}
        """Under way, by request."""
        self.device_tables: dict[str, list[int]] = {}
        """Device blocks that copies to the host under way hold, by request."""
        self.memory: Memory = {}
        self.device_memory = device_memory
        self.num_tokens = 0

    @property
    def num_ready(self) -> int:
        return sum(lane.where == "ready" for lane in self.lanes.values())

    # Copies.

    def begin_out(self, copy: Offload, client: Client, table: list[int]) -> None:
        request = client.request
        assert client.name.startswith("be") and not client.ended
        assert client.num_in_flight == 0 and client.received > 0
        assert client.scheduled == client.known - 1, f"{client.name} is not at a token boundary"
        assert copy.request_id not in self.copies and copy.lane not in self.lanes
        assert len(copy.device_block_ids) == len(copy.host_block_ids)
        num_shared = len(table) - len(copy.device_block_ids)
        assert tuple(table[num_shared:]) == copy.device_block_ids
        assert num_shared * self.block_size <= request.num_computed
        self.lanes[copy.lane] = Lane(copy.lane, client)
        self.device_tables[copy.request_id] = table
        self._begin(copy, self.memory, copy.host_block_ids)

    def begin_in(self, copy: Return, client: Client) -> None:
        lane = self.lanes[copy.lane]
        assert lane.client is client and lane.where == "idle" and not lane.is_stopping
        assert len(copy.device_block_ids) == len(copy.host_block_ids)
        num_shared = len(copy.block_table) - len(copy.device_block_ids)
        assert copy.block_table[num_shared:] == copy.device_block_ids
        assert len(copy.block_table) == -(-(client.known - 1) // self.block_size)
        self._begin(copy, self.device_memory, copy.device_block_ids)

    def _begin(self, copy: Copy, memory: Memory, block_ids: tuple[int, ...]) -> None:
        assert copy.request_id not in self.copies
        self.copies[copy.request_id] = copy
        for place in self._places(block_ids):
            memory[place] = SPOILT

    def land(self, request_id: str) -> Copy:
        copy = self.copies.pop(request_id)
        source, target = self.device_memory, self.memory
        sources, targets = copy.device_block_ids, copy.host_block_ids
        if isinstance(copy, Offload):
            del self.device_tables[request_id]
        else:
            source, target, sources, targets = target, source, targets, sources
        for place, goal in zip(self._places(sources), self._places(targets), strict=True):
            target[goal] = source.get(place, SPOILT)
        self.scheduler.copy_landed(request_id)
        return copy

    def _places(self, block_ids: tuple[int, ...]) -> list[tuple[int, int, int]]:
        return [
            (layer, block_id, offset)
            for block_id in block_ids
            for layer in range(self.num_layers)
            for offset in range(self.block_size)
        ]

    # Lanes.

    def take_rows(self, plan: StepPlan) -> LaneRows:
        """Bind what joins the plan, as an engine does that binds at the start of a step."""
        joining: dict[int, list[Lane]] = {layer: [] for layer in range(self.num_layers)}
        for lane in self.lanes.values():
            if lane.where == "ready" and len(joining[lane.layer]) < plan.max_lane_rows:
                joining[lane.layer].append(lane)
        for rows in joining.values():
            for lane in rows:
                lane.where = "in_step"
        assert len(plan.lane_entries) <= plan.max_lane_rows
        return LaneRows([self._enter(entry) for entry in plan.lane_entries], joining)

    def _enter(self, entry: LaneEntry) -> Lane:
        lane = self.lanes[entry.lane]
        client = lane.client
        assert client.name == entry.request_id and not client.ended and not lane.is_stopping
        assert lane.where == "idle" and entry.request_id not in self.copies
        assert entry.first_new_block == len(lane.table)
        lane.table += entry.new_block_ids
        assert entry.position == client.known - 1
        assert entry.token_id == client.tokens[entry.position]
        assert len(lane.table) == -(-client.known // self.block_size)
        assert len({*lane.table}) == len(lane.table)
        lane.where, lane.layer, lane.position = "in_step", 0, entry.position
        return lane

    def run_layer(self, rows: LaneRows, layer: int) -> list[Lane]:
        """What the step does at a layer; lanes that leave the last one are returned."""
        leaving = rows.joining[layer]
        if layer == 0:
            for lane in rows.entering:
                lane.where = "on_host"
        exits = []
        for lane in leaving:
            lane.layer += 1
            if lane.layer == self.num_layers:
                exits.append(lane)
            else:
                lane.where = "on_host"
        return exits

    def leave_step(self, lane: Lane) -> bool:
        """The exit's step is complete; whether its token is still wanted."""
        lane.where = "idle"
        wanted = not lane.client.ended
        self.num_tokens += wanted
        return wanted

    def attend(self, number: int) -> None:
        """The host appends a row and reads its context, also of a lane that is stopping."""
        lane = self.lanes[number]
        assert lane.where == "on_host"
        expected = lane.client.tokens[: lane.position + 1]
        self.memory[lane.layer, *self._place(lane, lane.position)] = expected
        for position in range(lane.position + 1):
            written = self.memory.get((lane.layer, *self._place(lane, position)))
            where = f"{lane.client.name} layer {lane.layer} position {position}"
            assert written == expected[: position + 1], f"host, {where} reads {written}"
        lane.where = "ready"

    def _place(self, lane: Lane, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.block_size)
        return lane.table[index], offset

    def note_released(self) -> None:
        for number in self.scheduler.take_released_lanes():
            lane = self.lanes[number]
            assert not lane.is_stopping
            lane.is_stopping = True
            if lane.where == "ready":
                lane.where = "idle"

    def list_quiet(self) -> list[int]:
        return [
            number
            for number, lane in self.lanes.items()
            if lane.is_stopping and lane.where in ("idle", "ready")
        ]

    def quieten(self, number: int) -> None:
        del self.lanes[number]
        self.scheduler.lane_is_quiet(number)

    def list_failing(self) -> list[int]:
        """Lanes whose work could be lost now: of requests alive, not in a step."""
        return sorted(
            number
            for number, lane in self.lanes.items()
            if lane.where != "in_step" and not lane.has_left
        )

    def fail(self, lane: Lane) -> None:
        """A lane that is not in a step has lost its work."""
        lane.where = "idle"
        assert self.scheduler.recompute(lane.client.name)
        is_copying = lane.client.name in self.copies
        assert is_copying or lane.client.request.status is Status.WAITING

    def check_empty(self) -> None:
        assert not self.lanes and not self.copies
        assert self.scheduler.num_offloaded == 0 == self.scheduler.counts.num_lanes_in_use
        assert self.blocks.num_free_blocks == self.blocks.num_granted_blocks
        assert self.scheduler.take_copies() == () == self.scheduler.take_released_lanes()
