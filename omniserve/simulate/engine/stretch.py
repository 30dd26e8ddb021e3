"""Layers of a step that run and may be interrupted between any two of them."""

from dataclasses import dataclass
from math import ceil

_SAME_SHARE = 1e-9
"""Of a layer: times that differ by less are the same boundary."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """When its layers end, all of which take the same time."""

    started_s: float
    layer_s: float
    num_layers: int

    def boundary_s(self, now_s: float) -> float:
        """The first boundary that is not before `now_s`, nor before one layer was run."""
        if self.layer_s <= 0.0:
            return self.started_s
        passed = ceil((now_s - self.started_s) / self.layer_s - _SAME_SHARE)
        return self.started_s + min(max(passed, 1), self.num_layers) * self.layer_s

    def num_passed(self, now_s: float) -> int:
        if self.layer_s <= 0.0:
            return self.num_layers
        return min(self.num_layers, round((now_s - self.started_s) / self.layer_s))
