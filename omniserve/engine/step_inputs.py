"""What a captured graph reads anew at every replay."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from omniserve.devices.pinned import empty_pinned
from omniserve.engine.batch import StepBatch
from omniserve.engine.step_shapes import StepShape
from omniserve.piggyback.lane_rows import LaneRows

PENDING = -1
"""Token id of a row whose token an earlier step has still to sample."""


class InputViews(NamedTuple):
    """Parts of one int64 memory; `Any` is a tensor or a numpy array."""

    tokens: Any
    """[num_rows]; 0 of padding."""
    slots: Any
    """[num_rows] where the token of a PENDING row will be; 0 of others."""
    entering: Any
    """[lane_width] tokens of segment 0."""
    positions: Any
    """[num_layers, num_rows + lane_width] by segment; 0 of padding."""
    lanes: Any
    """[num_layers + 1, lane_width] by segment; of padding the lane that is nobody's."""


class StepInputs:
    """In device memory that stays where it is; one copy fills all of it."""

    def __init__(self, shape: StepShape, num_layers: int, nobody: int, device: torch.device):
        """All is padding. nobody: the lane of padding."""
        self._num_rows, width = shape.num_rows, shape.lane_width
        self._nobody = nobody
        self._shapes = (
            (self._num_rows,),
            (self._num_rows,),
            (width,),
            (num_layers, self._num_rows + width),
            (num_layers + 1, width),
        )
        num_values = sum(torch.Size(part).numel() for part in self._shapes)
        self._memory = torch.empty(num_values, dtype=torch.int64, device=device)
        self.views = self._split(self._memory)
        self.clear()

    def clear(self) -> None:
        """All is padding again."""
        self._memory.zero_()
        self.views.lanes.fill_(self._nobody)

    def fill(self, batch: StepBatch, entering: NDArray[np.int64], rows: LaneRows | None) -> None:
        """Resident rows are decodes; `entering` are the tokens of `rows` of segment 0."""
        staged = empty_pinned(self._memory.shape, torch.int64, self._memory.device)
        self._write(self._split(staged.zero_().numpy()), batch, entering, rows)
        self._memory.copy_(staged, non_blocking=True)

    def _write(
        self,
        views: InputViews,
        batch: StepBatch,
        entering: NDArray[np.int64],
        rows: LaneRows | None,
    ) -> None:
        count = len(batch.token_ids)
        views.tokens[:count] = batch.token_ids
        views.tokens[batch.pending_rows] = PENDING
        views.slots[batch.pending_rows] = batch.pending_slots
        views.entering[: len(entering)] = entering
        views.positions[:, :count] = batch.positions
        views.lanes[:] = self._nobody
        if rows is not None:
            width = min(views.lanes.shape[1], rows.width)
            is_row = np.arange(width) < rows.counts[:, None]
            lane_positions = views.positions[:, self._num_rows :]
            lane_positions[:, :width] = rows.positions[:-1, :width]
            views.lanes[:, :width][is_row] = rows.lanes[:, :width][is_row]

    def _split(self, memory: Any) -> InputViews:
        parts, start = [], 0
        for shape in self._shapes:
            end = start + torch.Size(shape).numel()
            parts.append(memory[start:end].reshape(shape))
            start = end
        return InputViews(*parts)
