"""How rows leave a step for the host and come back."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cpu_attn.host import HostAttention
from omniserve.piggyback.lane_rows import LaneRows
from omniserve.piggyback.slot_tensors import SlotTensors


class LaneExchange(Protocol):
    """Residual store of a model, and the way of its q, k, v and attention outputs.

    Never waits for the host.
    """

    @property
    def residual_row_bytes(self) -> int:
        """Bytes of one row of the residual store."""

    @property
    def num_leaving(self) -> int:
        """Rows that left a step and that the host was not given yet."""

    def bring(self, rows: LaneRows, segments: range) -> None:
        """Rows of these segments are bound: their lanes and outputs go to the device at once."""

    def join(self, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        """Residuals [count, hidden_size] and attention outputs [count, num_heads * head_dim]."""

    def leave(
        self, rows: LaneRows, layer: int, residual: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        """The rows of segment `layer` leave after `pre` of that layer.

        residual [count, hidden_size], q [count, num_heads, head_dim], k and v [count, num_kv_heads,
        head_dim]. Raises HostAttentionDown where nobody will attend to them, if that is known now.
        """

    def pump(self) -> None:
        """Gives the host what has arrived there since."""


@runtime_checkable
class StagedExchange(LaneExchange, Protocol):
    """One whose part in a layer can be recorded in a captured graph.

    `join_lanes` and `stage` do nothing but launch work on the device, the same for any lanes.
    """

    @property
    def nobody(self) -> int:
        """The lane that padding names: zeros are read there, and what is written there is lost."""

    def join_lanes(self, lanes: Tensor) -> tuple[Tensor, Tensor]:
        """As `join`, for lanes int64 [width] on the device that were brought."""

    def stage(self, lanes: Tensor, residual: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
        """First half of `leave`: rows are kept on the device by lane."""

    def send(self, rows: LaneRows, layers: range) -> None:
        """Second half, for several layers at once: rows that a step staged there go to the host."""


class SharedMemoryExchange:
    """For a CPU device: the host's slot arrays are memory like any other."""

    def __init__(
        self, host: HostAttention, model: int, hidden_size: int, dtype: torch.dtype
    ) -> None:
        self._host = host
        self._model = model
        self._slots = SlotTensors.of(host, model, dtype)
        self._residuals = torch.zeros(len(self._slots.out), hidden_size, dtype=dtype)

    @property
    def residual_row_bytes(self) -> int:
        return self._residuals.shape[1] * self._residuals.element_size()

    @property
    def num_leaving(self) -> int:
        return 0

    def bring(self, rows: LaneRows, segments: range) -> None:
        """Nothing to do: the device reads host memory."""

    def join(self, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        lanes = rows.device_lanes_of(segment)
        return self._residuals.index_select(0, lanes), self._slots.out.index_select(0, lanes)

    def leave(
        self, rows: LaneRows, layer: int, residual: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        lanes = rows.device_lanes_of(layer)
        # The residual first: a quick host may bring the row back before this returns.
        self._residuals.index_copy_(0, lanes, residual)
        self._slots.q.index_copy_(0, lanes, q)
        self._slots.k.index_copy_(0, lanes, k)
        self._slots.v.index_copy_(0, lanes, v)
        contexts = rows.positions[layer, : rows.counts[layer]] + 1
        self._host.submit_many(self._model, rows.of(layer), layer, contexts)

    def pump(self) -> None:
        """Nothing to do: `leave` submits."""
