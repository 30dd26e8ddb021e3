"""A short look at what steps and reads cost on this machine, with and without the host's cores."""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from omniserve.models.decoder import DecoderLayer, DecoderModel
from omniserve.models.lora import RowDelta
from omniserve.piggyback.core_split import CoreSplit
from scheduler.offload_rule import DeviceSpeed, HostSpeed

_NUM_REPEATS = 3
_MANY_ROWS = 32
_LEAST_WEIGHT_BYTES = 256 << 20
"""Layers of so much, where the model has them: fewer would be read from caches."""
_READ_BYTES = 64 << 20
_HOST_SHARE_OF_READ = 0.7
"""Of what a core can read, what an attention kernel gets to."""

_Mode = Literal["alone", "beside"]
"""Whether the device has all cores, or those that the host leaves."""


_Kind = Literal["one row", "many rows", "read", "read by one core"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One thing that is timed, several times over; the least counts."""

    mode: _Mode
    kind: _Kind
    layer: int
    run: Callable[[], object]


class SpeedMeasurement:
    """A HostSpeed, measured a piece at a time: others wait for a layer of the model at most.

    Tenths of a second in all for 100 million parameters, some seconds for billions.
    """

    def __init__(
        self,
        model: DecoderModel,
        core_split: CoreSplit,
        num_host_threads: int,
        known: HostSpeed | None,
        note: Callable[[HostSpeed], None],
    ) -> None:
        """known: of another model, for what is the machine's alone: reads are not timed again;
        None where there is none. note: told the result once it is there."""
        self._note = note
        self._core_split = core_split
        self._num_host_threads = num_host_threads
        self._known = known
        bytes_per_layer = 2 * model.num_parameters // max(1, model.num_layers)
        num_layers = min(model.num_layers, -(-_LEAST_WEIGHT_BYTES // bytes_per_layer))
        self._scale = model.num_layers / num_layers
        self._best_s: dict[tuple[_Mode, _Kind, int], float] = {}
        self._pieces: dict[_Mode, deque[_Piece]] = defaultdict(deque)
        data = torch.ones(_READ_BYTES // 4 if known is None else 0)
        modes: tuple[_Mode, _Mode] = ("alone", "beside")
        for mode in modes:
            # The first round is slow, as first times are, and counts for nothing.
            for _ in range(1 + _NUM_REPEATS):
                self._pieces[mode] += _layer_pieces(mode, model, model.layers[:num_layers])
                if known is None:
                    self._pieces[mode] += _read_pieces(mode, data)

    @property
    def result(self) -> HostSpeed | None:
        """None until all pieces are measured."""
        if any(self._pieces.values()):
            return None
        if self._known is not None:
            return replace(
                self._known,
                device_alone=self._device_speed("alone", self._known.device_alone),
                device_beside_host=self._device_speed("beside", self._known.device_beside_host),
            )
        alone, beside = self._device_speed("alone"), self._device_speed("beside")
        one_core = _READ_BYTES / self._total_s("beside", "read by one core")
        host = _HOST_SHARE_OF_READ * self._num_host_threads * one_core
        # Whatever the number of workers, memory gives no more than it gives all cores.
        return HostSpeed(alone, beside, min(host, alone.kv_bytes_per_s))

    @torch.inference_mode()
    def advance(self) -> None:
        """Measures one piece, and leaves the cores as they were.

        What all cores can do is not measured while the host has some of them: its workers would be
        in the way, and the device in theirs.
        """
        split = self._core_split
        was_split = split.is_split
        mode: _Mode = "beside" if self._pieces["beside"] else "alone"
        if not self._pieces[mode] or (was_split and mode == "alone"):
            return
        self._run(self._pieces[mode].popleft())
        if split.is_split != was_split:
            split.update(is_split=was_split)
        if self.result is not None:
            self._note(self.result)

    @torch.inference_mode()
    def finish(self) -> HostSpeed:
        """Measures all that is left; the device has all cores after it."""
        for pieces in self._pieces.values():
            while pieces:
                self._run(pieces.popleft())
        self._core_split.unite()
        assert self.result is not None
        self._note(self.result)
        return self.result

    def _run(self, piece: _Piece) -> None:
        is_split = piece.mode == "beside"
        if self._core_split.is_split != is_split:
            self._core_split.update(is_split=is_split)
            # The first thing that a new number of threads computes is slow.
            torch.ones(1 << 16).sum()
        start = time.perf_counter()
        piece.run()
        seconds = time.perf_counter() - start
        key = (piece.mode, piece.kind, piece.layer)
        # Of the first time there is no telling what it was spent on.
        self._best_s[key] = min(self._best_s[key], seconds) if key in self._best_s else math.inf

    def _device_speed(self, mode: _Mode, known: DeviceSpeed | None = None) -> DeviceSpeed:
        one = self._scale * self._total_s(mode, "one row")
        many = self._scale * self._total_s(mode, "many rows")
        row_s = max(0.0, many - one) / (_MANY_ROWS - 1)
        if known is not None:
            return DeviceSpeed(one, row_s, known.kv_bytes_per_s)
        return DeviceSpeed(one, row_s, _READ_BYTES / self._total_s(mode, "read"))

    def _total_s(self, mode: _Mode, kind: _Kind) -> float:
        """Of all layers, where it is one of layers."""
        return sum(
            best_s for (of, what, _), best_s in self._best_s.items() if (of, what) == (mode, kind)
        )


def _layer_pieces(mode: _Mode, model: DecoderModel, layers: list[DecoderLayer]) -> list[_Piece]:
    """A pass over the layers with one row, then with many."""
    kinds: tuple[tuple[_Kind, int], ...] = (("one row", 1), ("many rows", _MANY_ROWS))
    return [
        _Piece(mode, kind, index, _layer_pass(model, layer, num_rows, model.deltas_of(index)))
        for kind, num_rows in kinds
        for index, layer in enumerate(layers)
    ]


def _layer_pass(
    model: DecoderModel, layer: DecoderLayer, num_rows: int, deltas: tuple[RowDelta, ...]
) -> Callable[[], object]:
    def run() -> None:
        residual = torch.zeros(num_rows, model.hidden_size, dtype=model.dtype)
        rotary = model.rotary.at(torch.zeros(num_rows, dtype=torch.int64))
        q, _, _ = layer.pre(residual, rotary, deltas)
        layer.post(residual, q.flatten(1), deltas)

    return run


def _read_pieces(mode: _Mode, data: Tensor) -> list[_Piece]:
    pieces = [_Piece(mode, "read", 0, data.sum)]
    if mode == "beside":
        pieces.append(_Piece(mode, "read by one core", 0, lambda: _sum_by_one_core(data)))
    return pieces


def _sum_by_one_core(data: Tensor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data.sum()
    torch.set_num_threads(before)
