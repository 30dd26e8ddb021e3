"""Steps of decodes and lane rows as captured graphs: one launch instead of thousands.

A step is padded to one of few shapes. Each shape has a graph, recorded when it is first met (or by
`warm_up`) on padding alone and replayed on what `StepInputs` and the attention's plan hold then.
Padding rows write to a scratch block of the KV cache and to the lane that is nobody's.

Proven on the CPU, with a tape of operators for a graph: the same tokens as layer by layer. Unproven
on an accelerator: no CUDA and no Ascend machine has run this.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omniserve.devices.attention import AttentionBatch, CapturableAttention, StaticDecodes
from omniserve.devices.graph_capture import GraphCapture
from omniserve.engine.batch import StepBatch
from omniserve.engine.step_inputs import PENDING, InputViews, StepInputs
from omniserve.engine.step_shapes import StepShape, lane_sizes, padded, row_sizes
from omniserve.logs import get_logger, log_event
from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.lane_exchange import StagedExchange
from omniserve.piggyback.lane_run import LaneRun

_LOG = get_logger(__name__)
_MOST_GRAPHS = 128


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How steps of a model are captured."""

    capture: GraphCapture
    scratch_block: int
    """A block of the KV cache that belongs to nobody."""
    max_lane_rows: int
    """Most lane rows of a segment; 0 without piggybacking."""


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: StepInputs
    attention: StaticDecodes | None
    """None where the shape has no resident rows."""
    replay: Callable[[], None]


class StepGraphs:
    """The captured graphs of one model; they share one memory for what comes out."""

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
        self._graphs: dict[StepShape, _Graph] = {}
        self._decodes: dict[tuple[int, int], StaticDecodes] = {}
        self._may_record = True
        self._out = torch.empty(
            max_rows + max_lane_rows,
            model.hidden_size,
            dtype=model.dtype,
            device=last_tokens.device,
        )

    def run(
        self, batch: StepBatch, entering: NDArray[np.int64], lanes: LaneRun | None
    ) -> Tensor | None:
        """Runs all layers of a step; None, and no layer run, where it must go layer by layer.

        Returns the residuals of the resident rows and then of those that left the last layer; they
        are good until the next run. `entering`: tokens of the rows of segment 0.
        """
        exchange = None if lanes is None else lanes.staged_exchange
        if batch.attention.chunks or (lanes is not None and exchange is None):
            return None
        num_rows = padded(len(batch.token_ids), self._row_sizes)
        if lanes is not None:
            lanes.bind(0)
        shape = self._shape(num_rows, batch, lanes)
        graph = self._graph(shape, exchange)
        if graph is None:
            return None
        graph.inputs.fill(batch, entering, None if lanes is None else lanes.rows)
        if graph.attention is not None:
            graph.attention.fill(batch.attention.padded(num_rows, self._settings.scratch_block))
        graph.replay()
        resident = self._out[: len(batch.token_ids)]
        if lanes is None or exchange is None:
            return resident
        lanes.leave_staged(exchange)
        num_exits = lanes.count(self._model.num_layers)
        return torch.cat([resident, self._out[num_rows : num_rows + num_exits]])

    @torch.inference_mode()
    def warm_up(self, exchange: StagedExchange | None) -> None:
        """Records every number of rows with every lane width, at the shortest contexts.

        exchange: that of the model's lanes, None where there are none.
        """
        size = self._attention.context_size(self._no_rows)
        for width in self._lane_sizes if exchange is not None else (0,):
            for num_rows in self._row_sizes:
                if num_rows + width:
                    self._graph(StepShape(num_rows, width, size if num_rows else 0), exchange)

    def _shape(self, num_rows: int, batch: StepBatch, lanes: LaneRun | None) -> StepShape:
        # A graph has some row, though a step may have none.
        most_lanes = 0 if lanes is None else max(int(lanes.rows.counts.max()), num_rows == 0)
        width = padded(most_lanes, self._lane_sizes)
        size = self._attention.context_size(batch.attention) if num_rows else 0
        return StepShape(num_rows, width, size)

    def _graph(self, shape: StepShape, exchange: StagedExchange | None) -> _Graph | None:
        """None where it cannot be recorded, or there are too many."""
        if shape not in self._graphs and self._may_record and len(self._graphs) < _MOST_GRAPHS:
            try:
                self._graphs[shape] = self._record(shape, exchange)
            except RuntimeError as error:
                self._may_record = False
                log_event(_LOG, "graph_capture_failed", level=logging.WARNING, reason=str(error))
        return self._graphs.get(shape)

    def _record(self, shape: StepShape, exchange: StagedExchange | None) -> _Graph:
        if not shape.lane_width:
            exchange = None
        nobody = 0 if exchange is None else exchange.nobody
        inputs = StepInputs(shape, self._model.num_layers, nobody, self._out.device)
        attention = self._static_decodes(shape) if shape.num_rows else None
        num_out = shape.num_rows + shape.lane_width

        def work() -> None:
            self._out[:num_out].copy_(self._run_layers(inputs.views, attention, exchange))

        return _Graph(inputs, attention, self._settings.capture.capture(work))

    def _static_decodes(self, shape: StepShape) -> StaticDecodes:
        """The same for all lane widths; filled with padding, on which graphs are recorded."""
        key = (shape.num_rows, shape.context_size)
        padding = self._no_rows.padded(shape.num_rows, self._settings.scratch_block)
        if key not in self._decodes:
            self._decodes[key] = self._attention.static_decodes(padding, shape.context_size)
        else:
            self._decodes[key].fill(padding)
        return self._decodes[key]

    def _run_layers(
        self,
        inputs: InputViews,
        attention: StaticDecodes | None,
        exchange: StagedExchange | None,
    ) -> Tensor:
        """What a graph records."""
        model = self._model
        sampled = self._last_tokens[inputs.slots]
        tokens = torch.where(inputs.tokens == PENDING, sampled, inputs.tokens)
        residual = model.embed(torch.cat([tokens, inputs.entering]))
        cos, signed_sin = model.rotary.at(inputs.positions.flatten())
        by_segment = inputs.positions.shape
        cos, signed_sin = cos.unflatten(0, by_segment), signed_sin.unflatten(0, by_segment)
        for index, layer in enumerate(model.layers):
            deltas = model.deltas_of(index)
            q, k, v = layer.pre(residual, (cos[index], signed_sin[index]), deltas)
            kept, attended = [], []
            if attention is not None:
                rows = slice(len(inputs.tokens))
                kept.append(residual[rows])
                attended.append(attention.run(index, q[rows], k[rows], v[rows]))
            if exchange is not None:
                rows = slice(len(inputs.tokens), None)
                exchange.stage(inputs.lanes[index], residual[rows], q[rows], k[rows], v[rows])
                joining, outputs = exchange.join_lanes(inputs.lanes[index + 1])
                kept.append(joining)
                attended.append(outputs)
            residual = layer.post(torch.cat(kept), torch.cat(attended), deltas)
        return residual
