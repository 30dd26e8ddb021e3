"""For how long latency-sensitive requests waited while layers of other models ran."""

from bisect import bisect_left
from dataclasses import dataclass, field

from omniserve.settings import WAIT_LAYER_BOUNDS, WAIT_SECOND_BOUNDS, LayerWaitStats


@dataclass(slots=True)
class LayerWaits:
    """Of one model. A wait begins when a request waits for its first token, or is due to have its
    next one begun, and ends with the first layer of the model's next step."""

    num_parked: int = 0
    """Times a step of this model stood back at a layer boundary."""
    _num_layers: int = 0
    _seconds: float = 0.0
    """Both of the wait that goes on."""
    _layer_counts: list[int] = field(default_factory=lambda: [0] * (len(WAIT_LAYER_BOUNDS) + 1))
    _second_counts: list[int] = field(default_factory=lambda: [0] * (len(WAIT_SECOND_BOUNDS) + 1))
    _sum_layers: int = 0
    _sum_s: float = 0.0

    def stood_behind(self, num_layers: int, seconds: float) -> None:
        """So many layers of another model ran, in this time."""
        self._num_layers += num_layers
        self._seconds += seconds

    def forget(self) -> None:
        """Nobody waits any more."""
        self._num_layers, self._seconds = 0, 0.0

    def end(self) -> None:
        """A step with latency-sensitive rows begins."""
        self._layer_counts[bisect_left(WAIT_LAYER_BOUNDS, self._num_layers)] += 1
        self._second_counts[bisect_left(WAIT_SECOND_BOUNDS, self._seconds)] += 1
        self._sum_layers += self._num_layers
        self._sum_s += self._seconds
        self.forget()

    def stats(self) -> LayerWaitStats:
        return LayerWaitStats(
            num_parked=self.num_parked,
            layer_counts=tuple(self._layer_counts),
            layer_sum=self._sum_layers,
            second_counts=tuple(self._second_counts),
            second_sum=self._sum_s,
        )
