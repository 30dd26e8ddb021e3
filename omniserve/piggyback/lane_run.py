"""The lane rows of one step, from the first binding to the logits."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.host import HostAttentionDown
from omniserve.piggyback.lane_book import LaneBook
from omniserve.piggyback.lane_exchange import LaneExchange, StagedExchange
from omniserve.piggyback.lane_rows import LaneRows
from scheduler import LaneAllowance


class LaneRun:
    """What the layer loop asks: who leaves, who joins."""

    def __init__(
        self,
        book: LaneBook,
        exchange: LaneExchange,
        rows: LaneRows,
        points: NDArray[np.int64],
        allowance: LaneAllowance,
        step: int,
        collect: Callable[[], None],
    ) -> None:
        """`collect` passes results that have come on to the book."""
        self.rows = rows
        self._book = book
        self._exchange = exchange
        stops = [*points[1:].tolist(), book.num_layers]
        self._stop_by_point = dict(zip(points.tolist(), stops, strict=True))
        self._allowance = allowance
        self._step = step
        self._collect = collect
        self._noted_stop = 0
        self._lost: list[NDArray[np.int64]] = []

    @property
    def staged_exchange(self) -> StagedExchange | None:
        """Where all rows of this run can be part of one captured graph: the way they take."""
        exchange = self._exchange
        is_bound_at_once = len(self._stop_by_point) <= 1
        return exchange if is_bound_at_once and isinstance(exchange, StagedExchange) else None

    @property
    def is_empty(self) -> bool:
        """Whether no row has joined so far, nor is bound to."""
        return not self.rows.counts.any()

    def binds_at(self, layer: int) -> bool:
        """Whether `bind` of this layer collects results of the host, those of other models too."""
        return layer in self._stop_by_point

    def bind(self, layer: int) -> None:
        """Binds what has come, if results are bound before this layer."""
        stop = self._stop_by_point.pop(layer, None)
        if stop is not None:
            if layer:
                self.note_left(layer)
                self._exchange.pump()
                self._collect()
            segments = range(layer + 1, stop + 1)
            if self._book.bind(self.rows, segments, self._allowance, self._step):
                self._exchange.bring(self.rows, segments)

    def count(self, segment: int) -> int:
        """Rows of a segment, which are bound by then."""
        return int(self.rows.counts[segment])

    def join(self, segment: int) -> tuple[Tensor, Tensor]:
        """Residuals [count, hidden_size] and attention outputs [count, num_heads * head_dim]."""
        return self._exchange.join(self.rows, segment)

    def leave(self, layer: int, residual: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
        """The rows of segment `layer` leave after `pre` of that layer; `note_left` is to follow."""
        try:
            self._exchange.leave(self.rows, layer, residual, q, k, v)
        except HostAttentionDown:
            self._lost.append(self.rows.of(layer))

    def note_left(self, stop_layer: int) -> None:
        """Enters in the book who left before this layer; before any result of theirs is collected.

        Once for many layers: an entry a layer would cost as much as what it is about.
        """
        self._book.leave(self.rows, range(self._noted_stop, stop_layer), self._step)
        self._noted_stop = stop_layer
        for lanes in self._lost:
            self._book.fail(lanes)
        self._lost.clear()

    def leave_staged(self, exchange: StagedExchange, stop_layer: int) -> None:
        """The rows that left before this layer, since this was called last, are staged by
        `exchange`."""
        layers = range(self._noted_stop, stop_layer)
        self.note_left(stop_layer)
        exchange.send(self.rows, layers)
