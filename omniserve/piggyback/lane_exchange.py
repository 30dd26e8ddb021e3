"""How rows leave a step for the host and come back."""

from typing import Protocol

import torch
from torch import Tensor

from cpu_attn.host import HostAttention
from omniserve.piggyback.lane_rows import LaneRows


class LaneExchange(Protocol):
    """Residual store of a model, and the way of its q, k, v and attention outputs.

    Never waits for the host.
    """

    @property
    def residual_row_bytes(self) -> int:
        """Bytes of one row of the residual store."""

    def bring(self, rows: LaneRows, segments: range) -> None:
        """Rows of these segments are bound: their lanes and outputs go to the device at once."""

    def join(self, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        """Residuals [count, hidden_size] and attention outputs [count, num_heads * head_dim]."""

    def leave(
        self, rows: LaneRows, layer: int, residual: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        """The rows of segment `layer` leave after `pre` of that layer.

        residual [count, hidden_size], q [count, num_heads, head_dim], k and v [count, num_kv_heads,
        head_dim]. Raises HostAttentionDown where nobody will attend to them.
        """

    def pump(self) -> None:
        """Gives the host what has arrived there since."""


class SharedMemoryExchange:
    """For a CPU device: the host's slot arrays are memory like any other."""

    def __init__(
        self, host: HostAttention, model: int, hidden_size: int, dtype: torch.dtype
    ) -> None:
        self._host = host
        self._model = model
        slots = host.slots[model]
        # One query token a lane: [lanes, heads, head_dim].
        self._q, self._k, self._v = (
            _as_tensor(array, dtype)[:, 0] for array in (slots.q, slots.k, slots.v)
        )
        self._out = _as_tensor(slots.out, dtype)[:, 0].flatten(1)
        self._residuals = torch.zeros(len(self._out), hidden_size, dtype=dtype)

    @property
    def residual_row_bytes(self) -> int:
        return self._residuals.shape[1] * self._residuals.element_size()

    def bring(self, rows: LaneRows, segments: range) -> None:
        """Nothing to do: the device reads host memory."""

    def join(self, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        lanes = rows.device_lanes_of(segment)
        return self._residuals.index_select(0, lanes), self._out.index_select(0, lanes)

    def leave(
        self, rows: LaneRows, layer: int, residual: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        lanes = rows.device_lanes_of(layer)
        # The residual first: a quick host may bring the row back before this returns.
        self._residuals.index_copy_(0, lanes, residual)
        self._q.index_copy_(0, lanes, q)
        self._k.index_copy_(0, lanes, k)
        self._v.index_copy_(0, lanes, v)
        contexts = rows.positions[layer, : rows.counts[layer]] + 1
        self._host.submit_many(self._model, rows.of(layer), layer, contexts)

    def pump(self) -> None:
        """Nothing to do: `leave` submits."""


def _as_tensor(array: object, dtype: torch.dtype) -> Tensor:
    """The same memory; numpy has no bfloat16, so its bits come as uint16."""
    tensor: Tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)
