"""Speeds that were measured since the engine started: none is measured twice."""

from dataclasses import dataclass, fields
from typing import Self

import torch

from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.calibration import SpeedMeasurement
from omniserve.piggyback.core_split import CoreSplit
from scheduler.offload_rule import HostSpeed


@dataclass(frozen=True, slots=True)
class _Shape:
    """Models that agree in it compute a step in the same time."""

    architecture: str
    dtype: torch.dtype
    num_layers: int
    num_heads: int
    head_dim: int
    hidden_size: int
    num_parameters: int

    @classmethod
    def of(cls, model: DecoderModel) -> Self:
        return cls(*(getattr(model, field.name) for field in fields(cls)))


class KnownSpeeds:
    """What was measured since the engine started, by shape of model."""

    def __init__(self) -> None:
        self._speeds: dict[_Shape, HostSpeed] = {}

    def of(self, model: DecoderModel) -> HostSpeed | None:
        """Measured for this model or one of the same shape."""
        return self._speeds.get(_Shape.of(model))

    def begin(
        self, model: DecoderModel, core_split: CoreSplit, num_host_threads: int
    ) -> SpeedMeasurement:
        """A measurement for the model; what it finds is known once it ends.

        What any model's measurement has found of the machine alone holds for this one too.
        """
        shape = _Shape.of(model)
        known = next(iter(self._speeds.values()), None)

        def note(speed: HostSpeed) -> None:
            self._speeds[shape] = speed

        return SpeedMeasurement(model, core_split, num_host_threads, known, note)
