"""Runs a step plan on the device: tensors in, logits out, any number of layers at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBackend
from omniserve.engine.batch import BlockTables, StepBatch, build_batch
from omniserve.models.decoder import DecoderModel
from scheduler.plan import StepPlan


@dataclass(slots=True)
class StepCursor:
    """A step under way: everything before `next_layer` is done."""

    batch: StepBatch
    residual: Tensor
    rotary: tuple[Tensor, Tensor]
    attention_plan: object
    next_layer: int = 0


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

    def start(self, plan: StepPlan) -> StepCursor:
        """Embeds the plan's tokens; no layer has run yet."""
        self._tables.update(plan)
        batch = build_batch(plan, self._tables, self._block_size)
        token_ids = torch.from_numpy(batch.token_ids).to(self._device)
        if len(batch.pending_rows):
            slots = torch.from_numpy(batch.pending_slots).to(self._device)
            rows = torch.from_numpy(batch.pending_rows).to(self._device)
            token_ids[rows] = self._last_tokens[slots]
        positions = torch.from_numpy(batch.positions).to(self._device)
        return StepCursor(
            batch=batch,
            residual=self._model.embed(token_ids),
            rotary=self._model.rotary.at(positions),
            attention_plan=self._attention.plan(batch.attention),
        )

    def advance(self, cursor: StepCursor, to_layer: int) -> None:
        """Runs the layers up to, not including, `to_layer`; stops and resumes anywhere."""
        residual = cursor.residual
        for index in range(cursor.next_layer, to_layer):
            layer = self._model.layers[index]
            q, k, v = layer.pre(residual, cursor.rotary)
            attended = self._attention.run(cursor.attention_plan, index, q, k, v)
            residual = layer.post(residual, attended)
        cursor.residual = residual
        cursor.next_layer = to_layer

    def logits(self, cursor: StepCursor) -> Tensor:
        """Logits [sampling rows, vocab_size] of a step whose layers are all done."""
        assert cursor.next_layer == self.num_layers
        residual = cursor.residual
        if len(cursor.batch.sampling_rows) != len(cursor.batch.positions):
            residual = residual[torch.from_numpy(cursor.batch.sampling_rows).to(self._device)]
        return self._model.logits(residual)

    def remember(self, batch: StepBatch, token_ids: Tensor) -> None:
        """Keeps sampled tokens [sampling rows] where a plan made ahead will look for them."""
        slots = torch.tensor([rows.slot for rows in batch.sampling_groups], device=self._device)
        self._last_tokens[slots] = token_ids
