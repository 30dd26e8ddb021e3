"""How rows leave an accelerator's step for the host and come back."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.host import HostAttention, HostAttentionDown
from omniserve.devices.pinned import empty_pinned, to_device
from omniserve.devices.side_stream import Mark, SideStream
from omniserve.piggyback.lane_rows import LaneRows
from omniserve.piggyback.slot_tensors import SlotTensors

_Lanes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Rows on their way to the host."""

    lanes: _Lanes
    layers: _Lanes
    contexts: _Lanes
    sent: Tensor
    """On the device; kept until it has been copied."""
    received: Tensor
    """[rows, numbers of q, k and v] in pinned memory."""
    mark: Mark


class AcceleratorExchange:
    """Residuals and attention outputs lie on the device by lane; q, k and v go down a stream.

    What arrived there is given to the host by `pump`, so call that often.
    """

    def __init__(
        self,
        host: HostAttention,
        model: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        stream: SideStream,
        lose: Callable[[_Lanes], None],
    ) -> None:
        """lose: told the lanes that nobody will attend to."""
        self._host = host
        self._model = model
        self._slots = SlotTensors.of(host, model, dtype)
        num_lanes, output_size = self._slots.out.shape
        self.nobody = num_lanes
        self._residuals, self._outputs, self._staged = (
            torch.zeros(num_lanes + 1, size, dtype=dtype, device=device)
            for size in (hidden_size, output_size, self._slots.sent_size)
        )
        self._stream = stream
        self._lose = lose
        self._leaving: deque[_Leaving] = deque()

    @property
    def residual_row_bytes(self) -> int:
        return self._residuals.shape[1] * self._residuals.element_size()

    @property
    def num_leaving(self) -> int:
        """Rows that left a step and that the host was not given yet."""
        return sum(len(leaving.lanes) for leaving in self._leaving)

    def bring(self, rows: LaneRows, segments: range) -> None:
        """Queues copies on the compute stream, before whatever joins there."""
        bound = slice(segments.start, segments.stop)
        device = self._outputs.device
        rows.device_lanes[bound].copy_(to_device(rows.lanes[bound], device))
        rows.device_positions[bound].copy_(to_device(rows.positions[bound], device))
        # Rows of segment 0 enter; they have no output yet.
        joining = slice(max(1, segments.start), segments.stop)
        is_bound = np.arange(rows.width) < rows.counts[joining, None]
        lanes = rows.lanes[joining][is_bound]
        if len(lanes):
            shape = (len(lanes), self._outputs.shape[1])
            outputs = empty_pinned(shape, self._outputs.dtype, device)
            torch.index_select(self._slots.out, 0, torch.from_numpy(lanes), out=outputs)
            brought = outputs.to(device, non_blocking=True)
            self._outputs.index_copy_(0, to_device(lanes, device), brought)

    def join(self, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        return self.join_lanes(rows.device_lanes_of(segment))

    def join_lanes(self, lanes: Tensor) -> tuple[Tensor, Tensor]:
        return self._residuals.index_select(0, lanes), self._outputs.index_select(0, lanes)

    def leave(
        self, rows: LaneRows, layer: int, residual: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        self._residuals.index_copy_(0, rows.device_lanes_of(layer), residual)
        lanes = rows.of(layer).copy()
        contexts = rows.positions[layer, : len(lanes)] + 1
        self._send(_one_row(q, k, v), lanes, np.full(len(lanes), layer), contexts)

    def stage(self, lanes: Tensor, residual: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._residuals.index_copy_(0, lanes, residual)
        # Padding would otherwise go from layer to layer and step to step, and grow.
        self._residuals[self.nobody].zero_()
        self._staged.index_copy_(0, lanes, _one_row(q, k, v))

    def send(self, rows: LaneRows, layers: range) -> None:
        counts = rows.counts[layers.start : layers.stop]
        segments, places = np.nonzero(np.arange(rows.width) < counts[:, None])
        if len(segments):
            segments += layers.start
            lanes = rows.lanes[segments, places]
            sent = self._staged.index_select(0, to_device(lanes, self._staged.device))
            self._send(sent, lanes, segments, rows.positions[segments, places] + 1)

    def _send(self, sent: Tensor, lanes: _Lanes, layers: _Lanes, contexts: _Lanes) -> None:
        received = empty_pinned(sent.shape, sent.dtype, sent.device)
        mark = self._stream.enqueue(lambda: received.copy_(sent, non_blocking=True))
        self._leaving.append(_Leaving(lanes, layers, contexts, sent, received, mark))

    def pump(self) -> None:
        arrived: list[_Leaving] = []
        while self._leaving and self._leaving[0].mark.query():
            arrived.append(self._leaving.popleft())
        if not arrived:
            return
        for leaving in arrived:
            self._slots.write(torch.from_numpy(leaving.lanes), leaving.received)
        lanes = np.concatenate([leaving.lanes for leaving in arrived])
        layers = np.concatenate([leaving.layers for leaving in arrived])
        contexts = np.concatenate([leaving.contexts for leaving in arrived])
        try:
            self._host.submit_many(self._model, lanes, layers, contexts)
        except HostAttentionDown:
            self._lose(lanes)


def _one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[count, numbers of q, k and v]"""
    return torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=1)
