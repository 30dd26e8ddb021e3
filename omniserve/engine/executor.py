"""Runs a step plan on the device: tensors in, logits out, any number of layers at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBackend
from omniserve.engine.batch import BlockTables, StepBatch, build_batch
from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.lane_run import LaneRun
from scheduler.plan import StepPlan


@dataclass(slots=True)
class StepCursor:
    """A step under way: everything before `next_layer` is done."""

    batch: StepBatch
    residual: Tensor
    """Resident rows first, lane rows behind them."""
    positions: Tensor
    """Of the resident rows."""
    rotary: tuple[Tensor, Tensor]
    attention_plan: object
    """None where there are no resident rows."""
    lanes: LaneRun | None = None
    next_layer: int = 0

    @property
    def num_resident(self) -> int:
        return len(self.positions)


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
    ) -> None:
        self._model = model
        self._attention = attention
        self._block_size = block_size
        self._tables = BlockTables(num_slots, -(-max_model_len // block_size))
        self._device = device
        # The token each slot sampled last stays on the device: a plan made ahead reads it there.
        self._last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)

    @property
    def num_layers(self) -> int:
        return self._model.num_layers

    def start(self, plan: StepPlan, lanes: LaneRun | None = None) -> StepCursor:
        """Embeds the plan's tokens; no layer has run yet."""
        self._tables.update(plan)
        batch = build_batch(plan, self._tables, self._block_size)
        token_ids = torch.from_numpy(batch.token_ids).to(self._device)
        if len(batch.pending_rows):
            slots = torch.from_numpy(batch.pending_slots).to(self._device)
            rows = torch.from_numpy(batch.pending_rows).to(self._device)
            token_ids[rows] = self._last_tokens[slots]
        positions = torch.from_numpy(batch.positions).to(self._device)
        if plan.lane_entries:
            entering = [entry.token_id for entry in plan.lane_entries]
            token_ids = torch.cat([token_ids, torch.tensor(entering, device=self._device)])
        return StepCursor(
            batch=batch,
            residual=self._model.embed(token_ids),
            positions=positions,
            rotary=self._model.rotary.at(positions),
            attention_plan=self._attention.plan(batch.attention) if plan.rows else None,
            lanes=lanes,
        )

    def advance(self, cursor: StepCursor, to_layer: int) -> None:
        """Runs the layers up to, not including, `to_layer`; stops and resumes anywhere."""
        for index in range(cursor.next_layer, to_layer):
            if cursor.lanes is None:
                self._run_layer(cursor, index)
            else:
                self._run_shared_layer(cursor, cursor.lanes, index)
        cursor.next_layer = to_layer

    def _run_layer(self, cursor: StepCursor, index: int) -> None:
        layer = self._model.layers[index]
        q, k, v = layer.pre(cursor.residual, cursor.rotary)
        attended = self._attention.run(cursor.attention_plan, index, q, k, v)
        cursor.residual = layer.post(cursor.residual, attended)

    def _run_shared_layer(self, cursor: StepCursor, lanes: LaneRun, index: int) -> None:
        """Lane rows leave after `pre` for the host; others join, with its results, for `post`."""
        layer, num_resident = self._model.layers[index], cursor.num_resident
        lanes.bind(index)
        residual, attended = [], []
        if len(cursor.residual):
            q, k, v = layer.pre(cursor.residual, self._rotary_with_lanes(cursor, lanes, index))
            if lanes.count(index):
                behind = slice(num_resident, None)
                lanes.leave(index, cursor.residual[behind], q[behind], k[behind], v[behind])
            if num_resident:
                rows = slice(num_resident)
                residual.append(cursor.residual[rows])
                attended.append(
                    self._attention.run(cursor.attention_plan, index, q[rows], k[rows], v[rows])
                )
        if lanes.count(index + 1):
            joining = lanes.join(index + 1)
            residual.append(joining[0])
            attended.append(joining[1])
        # Without resident rows nothing may be left of a step between two layers.
        cursor.residual = (
            layer.post(_rows_of(residual), _rows_of(attended)) if residual else cursor.residual[:0]
        )

    def _rotary_with_lanes(
        self, cursor: StepCursor, lanes: LaneRun, segment: int
    ) -> tuple[Tensor, Tensor]:
        if not lanes.count(segment):
            return cursor.rotary
        positions = torch.cat([cursor.positions, lanes.rows.device_positions_of(segment)])
        return self._model.rotary.at(positions)

    def logits(self, cursor: StepCursor) -> Tensor:
        """Logits [sampling rows, vocab_size] of a step whose layers are all done; exits last."""
        assert cursor.next_layer == self.num_layers
        residual = cursor.residual
        if len(cursor.batch.sampling_rows) != cursor.num_resident:
            exits = np.arange(cursor.num_resident, len(residual))
            rows = np.concatenate([cursor.batch.sampling_rows, exits])
            residual = residual[torch.from_numpy(rows).to(self._device)]
        return self._model.logits(residual)

    def set_block_table(self, slot: int, block_ids: Sequence[int]) -> None:
        """The whole table of a request that came back to the device."""
        self._tables.set(slot, block_ids)

    def remember(self, batch: StepBatch, token_ids: Tensor) -> None:
        """Keeps sampled tokens where a plan made ahead will look for them; those of lanes, which
        come last, enter only once they are known.
        """
        slots = torch.tensor(
            [rows.slot for rows in batch.sampling_groups], dtype=torch.int64, device=self._device
        )
        self._last_tokens[slots] = token_ids[: len(slots)]


def _rows_of(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
