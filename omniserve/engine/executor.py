"""Runs a step plan on the device: tensors in, logits out, any number of layers at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omniserve.devices.attention import AttentionBackend, CapturableAttention
from omniserve.devices.pinned import to_device
from omniserve.engine.batch import BlockTables, StepBatch, build_batch
from omniserve.engine.step_graphs import CapturedStep, GraphSettings, StepGraphs
from omniserve.models.decoder import DecoderLayer, DecoderModel
from omniserve.models.lora import RowDelta
from omniserve.models.weight_store import ModelWeights
from omniserve.piggyback.lane_exchange import LaneExchange, StagedExchange
from omniserve.piggyback.lane_run import LaneRun
from scheduler.plan import StepPlan

LayerInput = tuple[Tensor, tuple[Tensor, Tensor]]
"""Residual [rows, hidden_size], and the cos and signed sin of each row's position."""


@dataclass(frozen=True, slots=True)
class ResidentRows:
    """What every layer needs of the resident rows of a step."""

    positions: Tensor
    rotary: tuple[Tensor, Tensor]
    attention_plan: object
    """None where there are no such rows."""


@dataclass(slots=True)
class StepCursor:
    """A step under way: everything before `next_layer` is done."""

    batch: StepBatch
    entering: NDArray[np.int64]
    """Tokens of the lane rows that begin with this step."""
    lanes: LaneRun | None
    next_layer: int = 0
    residual: Tensor | None = None
    """Resident rows first, lane rows behind them; None before the first layer, and amid layers
    that run as captured graphs."""
    resident: ResidentRows | None = None
    """None before the first layer, and where layers run as captured graphs."""
    captured: CapturedStep | None = None
    """Where they do, from the first layer on."""

    @property
    def num_resident(self) -> int:
        return len(self.batch.token_ids)


class Executor:
    """Owns the per-slot tables of one model; knows plans, but neither queues nor tiers."""

    def __init__(
        self,
        model: DecoderModel,
        attention: AttentionBackend,
        block_size: int,
        num_slots: int,
        max_model_len: int,
        device: torch.device,
        graphs: GraphSettings | None = None,
    ) -> None:
        """graphs: how steps are captured, where the device and `attention` can; None: never."""
        self._model = model
        self._attention = attention
        self._block_size = block_size
        table_width = -(-max_model_len // block_size)
        self._tables = BlockTables(num_slots, table_width)
        self._device = device
        # The token each slot sampled last stays on the device: a plan made ahead reads it there.
        self._last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._graphs: StepGraphs | None = None
        if graphs is not None and isinstance(attention, CapturableAttention):
            self._graphs = StepGraphs(model, attention, graphs, table_width, self._last_tokens)

    @property
    def num_layers(self) -> int:
        return self._model.num_layers

    @property
    def layers(self) -> Sequence[DecoderLayer]:
        """Of its model; those that other models have too are the same objects."""
        return self._model.layers

    def deltas_of(self, layer: int, rows: slice) -> tuple[RowDelta, ...]:
        """What its model, where that is an adapter, adds to a layer in which these rows are its."""
        return self._model.deltas_of(layer, rows)

    @property
    def is_adapter(self) -> bool:
        """Whether its model adds something to another one."""
        return self._model.is_adapter

    @property
    def weights(self) -> ModelWeights:
        """Those that its model holds."""
        return self._model.weights

    def warm_up(self, exchange: LaneExchange | None, *, is_alone: bool) -> None:
        """Makes what steps would make when they first need it; `exchange` is that of the lanes.
        Steps of a model that `is_alone` on its device may run through."""
        if self._graphs is not None:
            staged = exchange if isinstance(exchange, StagedExchange) else None
            self._graphs.warm_up(staged, is_alone=is_alone)

    def start(self, plan: StepPlan, lanes: LaneRun | None = None) -> StepCursor:
        """Lays out the plan's rows; no layer has run yet."""
        self._tables.update(plan)
        batch = build_batch(plan, self._tables, self._block_size)
        entering = np.array([entry.token_id for entry in plan.lane_entries], dtype=np.int64)
        return StepCursor(batch, entering, lanes)

    def runs_captured(self, cursor: StepCursor) -> bool:
        """Whether the layers run as captured graphs, or may if none has run yet."""
        if cursor.captured is not None:
            return True
        can_capture = self._graphs is not None and cursor.next_layer == 0
        return can_capture and not cursor.batch.attention.chunks

    def next_stop(self, cursor: StepCursor) -> int:
        """The next layer boundary at which the step can stop."""
        if self._graphs is not None and self.runs_captured(cursor):
            return self._graphs.next_stop(cursor.next_layer)
        return cursor.next_layer + 1

    def advance(self, cursor: StepCursor, to_layer: int) -> None:
        """Runs the layers up to, not including, `to_layer`: all that are left, or up to the
        `next_stop`."""
        if cursor.next_layer == 0:
            if self._graphs is not None:
                cursor.captured = self._graphs.begin(
                    cursor.batch, cursor.entering, cursor.lanes, to_layer
                )
            if cursor.captured is None:
                self.embed(cursor)
        if cursor.captured is not None:
            assert self._graphs is not None
            self._graphs.advance(cursor.captured, to_layer)
            cursor.residual = cursor.captured.residual
        elif cursor.resident is not None:
            for index in range(cursor.next_layer, to_layer):
                self._run_layer(cursor, cursor.resident, index)
            if cursor.lanes is not None:
                cursor.lanes.note_left(to_layer)
        cursor.next_layer = to_layer

    def embed(self, cursor: StepCursor) -> None:
        """What comes before the first layer."""
        batch, device = cursor.batch, self._device
        token_ids = to_device(batch.token_ids, device)
        if len(batch.pending_rows):
            slots = to_device(batch.pending_slots, device)
            token_ids[to_device(batch.pending_rows, device)] = self._last_tokens[slots]
        positions = to_device(batch.positions, device)
        if len(cursor.entering):
            token_ids = torch.cat([token_ids, to_device(cursor.entering, device)])
        cursor.residual = self._model.embed(token_ids)
        cursor.resident = ResidentRows(
            positions,
            self._model.rotary.at(positions),
            self._attention.plan(batch.attention) if cursor.num_resident else None,
        )

    def _run_layer(self, cursor: StepCursor, resident: ResidentRows, index: int) -> None:
        assert cursor.residual is not None
        layer, deltas = self._model.layers[index], self._model.deltas_of(index)
        if cursor.lanes is None:
            q, k, v = layer.pre(cursor.residual, resident.rotary, deltas)
            attended = self._attention.run(resident.attention_plan, index, q, k, v)
            cursor.residual = layer.post(cursor.residual, attended, deltas)
            return
        entering = self.enter_layer(cursor, index)
        qkv = layer.pre(*entering, deltas) if len(entering[0]) else None
        parts = self.attend(cursor, index, qkv)
        # Without resident rows nothing may be left of a step between two layers.
        cursor.residual = layer.post(*join_parts(parts), deltas) if parts else cursor.residual[:0]

    def enter_layer(self, cursor: StepCursor, index: int) -> LayerInput:
        """Binds lane rows where it is time to; what `pre` of the layer is to be given."""
        assert cursor.residual is not None and cursor.resident is not None
        rotary = cursor.resident.rotary
        if cursor.lanes is not None:
            cursor.lanes.bind(index)
            if cursor.lanes.count(index):
                behind = cursor.lanes.rows.device_positions_of(index)
                rotary = self._model.rotary.at(torch.cat([cursor.resident.positions, behind]))
        return cursor.residual, rotary

    def attend(
        self, cursor: StepCursor, index: int, qkv: tuple[Tensor, Tensor, Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Between `pre` and `post` of a layer: residuals and attention outputs for `post`.

        Lane rows leave for the host; others join with its results, behind the resident rows. `qkv`
        is None where no row entered; the result is empty where none is left.
        """
        resident, lanes, rows = cursor.resident, cursor.lanes, cursor.residual
        assert resident is not None and rows is not None
        parts = []
        if qkv is not None:
            q, k, v = qkv
            if lanes is not None and lanes.count(index):
                behind = slice(cursor.num_resident, None)
                lanes.leave(index, rows[behind], q[behind], k[behind], v[behind])
            if cursor.num_resident:
                own = slice(cursor.num_resident)
                out = self._attention.run(resident.attention_plan, index, q[own], k[own], v[own])
                parts.append((rows[own], out))
        if lanes is not None and lanes.count(index + 1):
            parts.append(lanes.join(index + 1))
        return parts

    def logits(self, cursor: StepCursor) -> Tensor:
        """Logits [sampling rows, vocab_size] of a step whose layers are all done; exits last."""
        assert cursor.next_layer == self.num_layers
        residual = cursor.residual
        assert residual is not None
        if len(cursor.batch.sampling_rows) != cursor.num_resident:
            exits = np.arange(cursor.num_resident, len(residual))
            rows = np.concatenate([cursor.batch.sampling_rows, exits])
            residual = residual[to_device(rows, self._device)]
        return self._model.logits(residual)

    def take_apart(self) -> Iterator[None]:
        """Drops layers and weights one after the other, so that nobody waits for all of them at
        once; it can compute nothing any more. What other models have too stays with them."""
        self._graphs = None
        yield from self._model.take_apart()

    def set_block_table(self, slot: int, block_ids: Sequence[int]) -> None:
        """The whole table of a request that came back to the device."""
        self._tables.set(slot, block_ids)

    def remember(self, batch: StepBatch, token_ids: Tensor) -> None:
        """Keeps sampled tokens where a plan made ahead will look for them; those of lanes, which
        come last, enter only once they are known.
        """
        slots = to_device(
            np.array([rows.slot for rows in batch.sampling_groups], dtype=np.int64), self._device
        )
        self._last_tokens[slots] = token_ids[: len(slots)]


def join_parts(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One behind the other, residuals and attention outputs each."""
    if len(parts) == 1:
        return parts[0]
    residuals, outputs = zip(*parts, strict=True)
    return torch.cat(residuals), torch.cat(outputs)
