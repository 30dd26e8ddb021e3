"""Steps of decodes and lane rows as captured graphs: few launches instead of thousands.

A step is padded to one of few shapes. Each shape has one graph of all layers, for steps that run
through, and graphs of segments of layers, for steps that may have to stop between them. They are
recorded when they are first needed (or by `warm_up`) on padding alone and replayed on what
`StepInputs` and the attention's plan hold then. Padding rows write to a scratch block of the KV
cache and to the lane that is nobody's.

Proven on the CPU, with a tape of operators for a graph: the same tokens as layer by layer. Unproven
on an accelerator: no CUDA and no Ascend machine has run this.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omniserve.devices.attention import AttentionBatch, CapturableAttention, StaticDecodes
from omniserve.devices.graph_capture import GraphCapture
from omniserve.engine.batch import StepBatch
from omniserve.engine.captured_layers import StaticStep, embed, run_layers
from omniserve.engine.step_inputs import StepInputs
from omniserve.engine.step_shapes import (
    StepShape,
    lane_sizes,
    padded,
    row_sizes,
    segment_stops,
)
from omniserve.logs import get_logger, log_event
from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.lane_exchange import StagedExchange
from omniserve.piggyback.lane_run import LaneRun

_LOG = get_logger(__name__)
_MOST_SHAPES = 128
"""Recorded as one graph, and as many in segments."""


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How steps of a model are captured."""

    capture: GraphCapture
    scratch_block: int
    """A block of the KV cache that belongs to nobody."""
    max_lane_rows: int
    """Most lane rows of a segment; 0 without piggybacking."""
    segment_layers: int = 1
    """Layers of one graph, in steps that may have to stop: what others wait for at most. More are
    less work for the host, but whose turn it is is reckoned with single layers."""


@dataclass(frozen=True, slots=True)
class _Graphs:
    """All layers of one shape."""

    step: StaticStep
    stops: tuple[int, ...]
    """Behind how many layers each graph ends."""
    replays: tuple[Callable[[], None], ...]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The shapes that are recorded in graphs that end behind so many layers."""

    stops: tuple[int, ...]
    by_shape: dict[StepShape, _Graphs] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class CapturedStep:
    """A step whose layers run as captured graphs: everything before `next_layer` is done."""

    batch: StepBatch
    entering: NDArray[np.int64]
    lanes: LaneRun | None
    graphs: _Graphs
    next_layer: int = 0
    residual: Tensor | None = None
    """While other steps use the graphs' memory, what stood there; at the end the residuals of the
    resident rows and then of those that left the last layer."""


class StepGraphs:
    """The captured graphs of one model; they share one memory for what goes through layers.

    Several steps may be under way. That memory is one step's at a time: another's residual is put
    aside, and brought back when it goes on.
    """

    def __init__(
        self,
        model: DecoderModel,
        attention: CapturableAttention,
        settings: GraphSettings,
        table_width: int,
        last_tokens: Tensor,
    ) -> None:
        """table_width: blocks of the longest sequence; last_tokens: int64 [slots], where a row
        finds its token if that had still to be sampled when its step was planned.
        """
        self._model = model
        self._attention = attention
        self._settings = settings
        self._no_rows = AttentionBatch.empty(table_width)
        self._last_tokens = last_tokens
        max_rows, max_lane_rows = len(last_tokens), settings.max_lane_rows
        self._row_sizes = row_sizes(max_rows)
        self._lane_sizes = lane_sizes(max_lane_rows)
        self._whole = _Recorded((model.num_layers,))
        self._segmented = _Recorded(segment_stops(model.num_layers, settings.segment_layers))
        self._steps: dict[StepShape, StaticStep] = {}
        self._decodes: dict[tuple[int, int], StaticDecodes] = {}
        self._may_record = True
        self._occupant: CapturedStep | None = None
        """Whose rows the memory holds."""
        self._residual = torch.empty(
            max_rows + max_lane_rows,
            model.hidden_size,
            dtype=model.dtype,
            device=last_tokens.device,
        )

    def next_stop(self, layer: int) -> int:
        """The boundary behind the segment that begins with this layer."""
        return next(stop for stop in self._segmented.stops if stop > layer)

    def begin(
        self,
        batch: StepBatch,
        entering: NDArray[np.int64],
        lanes: LaneRun | None,
        first_stop: int,
    ) -> CapturedStep | None:
        """A step before its first layer; None where it must go layer by layer.

        `entering`: tokens of the rows of segment 0; `first_stop`: behind how many layers it may
        have to stop first.
        """
        exchange = None if lanes is None else lanes.staged_exchange
        if batch.attention.chunks or (lanes is not None and exchange is None):
            return None
        if lanes is not None:
            lanes.bind(0)
        shape = self._shape(batch, lanes)
        form = self._form(shape, first_stop)
        graphs = None if form is None else self._graphs_of(shape, exchange, form)
        return None if graphs is None else CapturedStep(batch, entering, lanes, graphs)

    def advance(self, step: CapturedStep, to_layer: int) -> None:
        """Runs the layers up to, not including, `to_layer`, at which a segment of it ends."""
        graphs, lanes = step.graphs, step.lanes
        if self._occupant is not step:
            self._bring_back(step)
        for stop, replay in zip(graphs.stops, graphs.replays, strict=True):
            if step.next_layer < stop <= to_layer:
                replay()
                step.next_layer = stop
        assert step.next_layer == to_layer, f"no segment ends at layer {to_layer}"
        if lanes is not None and lanes.staged_exchange is not None:
            lanes.leave_staged(lanes.staged_exchange, to_layer)
        if to_layer == self._model.num_layers:
            step.residual, self._occupant = self._leaving(step), None

    @torch.inference_mode()
    def warm_up(self, exchange: StagedExchange | None, *, is_alone: bool) -> None:
        """Records every number of rows with every lane width, at the shortest contexts: in
        segments, and for a model that is alone as a whole.

        exchange: that of the model's lanes, None where there are none.
        """
        forms = (self._whole, self._segmented) if is_alone else (self._segmented,)
        size = self._attention.context_size(self._no_rows)
        for width in self._lane_sizes if exchange is not None else (0,):
            for num_rows in self._row_sizes:
                if num_rows + width:
                    shape = StepShape(num_rows, width, size if num_rows else 0)
                    for form in forms:
                        self._graphs_of(shape, exchange, form)

    def _shape(self, batch: StepBatch, lanes: LaneRun | None) -> StepShape:
        num_rows = padded(len(batch.token_ids), self._row_sizes)
        # A graph has some row, though a step may have none.
        most_lanes = 0 if lanes is None else max(int(lanes.rows.counts.max()), num_rows == 0)
        width = padded(most_lanes, self._lane_sizes)
        size = self._attention.context_size(batch.attention) if num_rows else 0
        return StepShape(num_rows, width, size)

    def _form(self, shape: StepShape, first_stop: int) -> _Recorded | None:
        """How a step runs that may have to stop there first; None where no graph ends there."""
        if first_stop != self._model.num_layers:
            return self._segmented if first_stop in self._segmented.stops else None
        # Nobody is to wait for another recording of what is there.
        is_there = shape in self._segmented.by_shape and shape not in self._whole.by_shape
        return self._segmented if is_there else self._whole

    def _graphs_of(
        self, shape: StepShape, exchange: StagedExchange | None, form: _Recorded
    ) -> _Graphs | None:
        """None where they cannot be recorded, or there are too many."""
        recorded = form.by_shape
        if shape not in recorded and self._may_record and len(recorded) < _MOST_SHAPES:
            try:
                recorded[shape] = self._record(shape, exchange, form.stops)
            except RuntimeError as error:
                self._may_record = False
                log_event(_LOG, "graph_capture_failed", level=logging.WARNING, reason=str(error))
        return recorded.get(shape)

    def _record(
        self, shape: StepShape, exchange: StagedExchange | None, stops: tuple[int, ...]
    ) -> _Graphs:
        self._put_aside()
        step = self._padding(shape, exchange if shape.lane_width else None)
        capture = self._settings.capture.capture
        replays = tuple(
            capture(partial(self._run, step, range(first, stop)))
            for first, stop in pairwise((0, *stops))
        )
        return _Graphs(step, stops, replays)

    def _run(self, step: StaticStep, layers: range) -> None:
        """What a graph records."""
        held = self._residual[: step.num_rows]
        entered = embed(self._model, step, self._last_tokens) if layers.start == 0 else held
        held.copy_(run_layers(self._model, step, layers, entered))

    def _padding(self, shape: StepShape, exchange: StagedExchange | None) -> StaticStep:
        """The static memory of a shape, filled with padding, on which graphs are recorded; whole
        and in segments it is the same."""
        attention = self._static_decodes(shape) if shape.num_rows else None
        if shape in self._steps:
            self._steps[shape].inputs.clear()
        else:
            nobody = 0 if exchange is None else exchange.nobody
            inputs = StepInputs(shape, self._model.num_layers, nobody, self._residual.device)
            self._steps[shape] = StaticStep(shape, inputs, attention, exchange)
        return self._steps[shape]

    def _static_decodes(self, shape: StepShape) -> StaticDecodes:
        """The same for all lane widths; filled with padding."""
        key = (shape.num_rows, shape.context_size)
        padding = self._no_rows.padded(shape.num_rows, self._settings.scratch_block)
        if key not in self._decodes:
            self._decodes[key] = self._attention.static_decodes(padding, shape.context_size)
        else:
            self._decodes[key].fill(padding)
        return self._decodes[key]

    def _put_aside(self) -> None:
        """What the memory holds is kept for the step that it belongs to."""
        step, self._occupant = self._occupant, None
        if step is not None:
            step.residual = self._residual[: step.graphs.step.num_rows].clone()

    def _bring_back(self, step: CapturedStep) -> None:
        """The memory is this step's: all that its graphs read is as it was when it stopped."""
        self._put_aside()
        static, batch = step.graphs.step, step.batch
        static.inputs.fill(batch, step.entering, None if step.lanes is None else step.lanes.rows)
        if static.attention is not None:
            scratch_block = self._settings.scratch_block
            static.attention.fill(batch.attention.padded(static.shape.num_rows, scratch_block))
        if step.residual is not None:
            self._residual[: static.num_rows].copy_(step.residual)
            step.residual = None
        self._occupant = step

    def _leaving(self, step: CapturedStep) -> Tensor:
        """Residuals of a step behind its last layer, without padding."""
        num_resident, lanes = len(step.batch.token_ids), step.lanes
        num_exits = 0 if lanes is None else lanes.count(self._model.num_layers)
        first_exit = step.graphs.step.shape.num_rows
        exits = self._residual[first_exit : first_exit + num_exits]
        # A copy: the step may still stand back for others behind its last layer.
        return torch.cat([self._residual[:num_resident], exits])
