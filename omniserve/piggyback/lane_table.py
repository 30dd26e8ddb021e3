"""Which lanes ride in which part of a step, as numpy arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def binding_layers(num_layers: int, num_points: int) -> NDArray[np.int64]:
    """Layers before which results that have come are bound: evenly spaced, the first is 0."""
    points = np.arange(min(num_points, num_layers))
    return points * num_layers // min(num_points, num_layers)


@dataclass(frozen=True, slots=True)
class LaneTable:
    """Lane rows of one step, filled in as results are bound to it.

    Segment 0 is the embedding and `pre` of layer 0: rows that enter. Segment s is `post` of layer
    s - 1 and `pre` of layer s: rows that join. The last one, num_layers, ends in the logits.
    """

    lanes: NDArray[np.int64]
    """[num_layers + 1, width]; entries past a segment's count are num_lanes, which is nobody's."""
    positions: NDArray[np.int64]
    """[num_layers + 1, width] position of each row's token; 0 past the count."""
    counts: NDArray[np.int64]
    """[num_layers + 1] rows of each segment."""

    @classmethod
    def without_rows(cls, num_layers: int, width: int, num_lanes: int) -> "LaneTable":
        shape = (num_layers + 1, width)
        return LaneTable(
            np.full(shape, num_lanes, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
            np.zeros(num_layers + 1, dtype=np.int64),
        )

    @property
    def width(self) -> int:
        return len(self.lanes[0])

    def of(self, segment: int) -> NDArray[np.int64]:
        """[count] lanes of a segment."""
        return self.lanes[segment, : self.counts[segment]]

    def fill(
        self, segments: NDArray[np.int64], lanes: NDArray[np.int64], contexts: NDArray[np.int64]
    ) -> None:
        """Adds rows; `segments` is sorted and names segments that are empty so far."""
        first = np.searchsorted(segments, segments)
        place = np.arange(len(segments)) - first
        self.lanes[segments, place] = lanes
        self.positions[segments, place] = contexts - 1
        self.counts[:] += np.bincount(segments, minlength=len(self.counts))
