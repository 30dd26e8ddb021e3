"""Layers that several models share, run once for the rows of all their steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from omniserve.engine.executor import Executor, LayerInput, StepCursor, join_parts
from omniserve.models.decoder import DecoderLayer
from omniserve.models.lora import RowDelta


@dataclass(frozen=True, slots=True)
class Rider:
    """A step of one model that goes through layers with steps of others."""

    executor: Executor
    cursor: StepCursor

    def shares_next_layer(self, other: "Rider") -> bool:
        """Whether both stand at the same layer, and it is one object in memory that neither of
        them runs as a captured graph."""
        if self.cursor.captured is not None or other.cursor.captured is not None:
            return False
        index = self.cursor.next_layer
        if other.cursor.next_layer != index or index >= len(self.executor.layers):
            return False
        theirs = other.executor.layers
        return index < len(theirs) and self.executor.layers[index] is theirs[index]


def num_shared_layers(executors: Sequence[Executor]) -> int:
    """The first layers that all these models have in common, in memory."""
    columns = zip(*(executor.layers for executor in executors), strict=False)
    return len(list(takewhile(_is_one, columns)))


def _is_one(layers: Sequence[DecoderLayer]) -> bool:
    return all(layer is layers[0] for layer in layers)


class JointLayers:
    """Advances steps of several models together where they stand at the same, shared layer.

    The idea is BlockLLM's (Hu et al., 2024): a block that several models have is one block, with
    one batch. Here it is a layer's two functions; each row attends to the KV of its own model, lane
    rows leave and join by the exchange of theirs, and rows of adapters get what these add.
    """

    def __init__(self) -> None:
        self.num_batches = 0
        """Layers that were run for several steps at once."""
        self.num_rows = 0
        """That took part in them, by what entered each layer."""

    def advance_together(self, riders: Sequence[Rider], to_layer: int) -> list[int]:
        """Runs the layers up to, not including, `to_layer`, for all riders at once; returns how
        many rows of each entered them, summed over the layers.

        They stand at the same layer, and their models share it and all up to there. Each may go on
        alone afterwards, or with others.
        """
        first = riders[0].cursor.next_layer
        assert all(rider.cursor.next_layer == first for rider in riders), "not side by side"
        columns = list(zip(*(rider.executor.layers for rider in riders), strict=False))
        shared = columns[first:to_layer]
        assert to_layer <= len(columns) and all(map(_is_one, shared)), "not shared"
        if first == 0 < to_layer:
            for rider in riders:
                rider.executor.embed(rider.cursor)
        num_rows = [0] * len(riders)
        for index in range(first, to_layer):
            counts = self._run_layer(riders, index)
            num_rows = [sum(each) for each in zip(num_rows, counts, strict=True)]
        for rider in riders:
            if rider.cursor.lanes is not None:
                rider.cursor.lanes.note_left(to_layer)
            rider.cursor.next_layer = to_layer
        return num_rows

    def _run_layer(self, riders: Sequence[Rider], index: int) -> list[int]:
        layer = riders[0].executor.layers[index]
        lanes = [rider.cursor.lanes for rider in riders if rider.cursor.lanes is not None]
        if index and any(each.binds_at(index) for each in lanes):
            # What one of them collects then may be for a row of another one that has just left.
            for each in lanes:
                each.note_left(index)
        inputs = [rider.executor.enter_layer(rider.cursor, index) for rider in riders]
        counts = [len(residual) for residual, _ in inputs]
        self.num_batches += 1
        self.num_rows += sum(counts)
        qkv = None
        if sum(counts):
            qkv = layer.pre(*_joined(inputs), _deltas(riders, index, counts))
        parts: list[tuple[Tensor, Tensor]] = []
        leaving = []
        start = 0
        for rider, count in zip(riders, counts, strict=True):
            mine = None if qkv is None or not count else _rows(qkv, start, start + count)
            attended = rider.executor.attend(rider.cursor, index, mine)
            parts += attended
            leaving.append(sum(len(residual) for residual, _ in attended))
            start += count
        if parts:
            out = layer.post(*join_parts(parts), _deltas(riders, index, leaving))
        else:
            out = inputs[0][0][:0]
        for rider, residual in zip(riders, out.split(leaving), strict=True):
            rider.cursor.residual = residual
        return counts


def _deltas(riders: Sequence[Rider], index: int, counts: Sequence[int]) -> list[RowDelta]:
    """What adapters among the models add, each to its own of the rows that stand one behind the
    other, so many of each."""
    deltas: list[RowDelta] = []
    start = 0
    for rider, count in zip(riders, counts, strict=True):
        if count:
            deltas += rider.executor.deltas_of(index, slice(start, start + count))
        start += count
    return deltas


def _joined(inputs: Sequence[LayerInput]) -> LayerInput:
    filled = [each for each in inputs if len(each[0])]
    if len(filled) == 1:
        return filled[0]
    residuals, rotaries = zip(*filled, strict=True)
    cos, signed_sin = zip(*rotaries, strict=True)
    return torch.cat(residuals), (torch.cat(cos), torch.cat(signed_sin))


def _rows(
    qkv: tuple[Tensor, Tensor, Tensor], start: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv
    return q[start:end], k[start:end], v[start:end]
