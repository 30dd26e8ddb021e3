"""Sizes that steps are padded to, so that few captured graphs serve all of them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one captured graph is for."""

    num_rows: int
    """Resident rows."""
    lane_width: int
    """Lane rows of every segment."""
    context_size: int
    """What the attention of the resident rows is made for; see CapturableAttention."""


def row_sizes(most: int) -> tuple[int, ...]:
    """Numbers of resident rows: close to each other where rows are few."""
    sizes = [0, 1, 2, 4, 8, *range(16, most, 16)]
    return (*(size for size in sizes if size < most), most)


def lane_sizes(most: int) -> tuple[int, ...]:
    """Lane widths: few, as every one multiplies the number of graphs."""
    sizes = [0, 4, 16, 64, *range(256, most, 256)]
    return (*(size for size in sizes if size < most), most)


def segment_stops(num_layers: int, segment_layers: int) -> tuple[int, ...]:
    """Behind how many layers each segment ends, if all but the last have `segment_layers`."""
    return (*range(segment_layers, num_layers, segment_layers), num_layers)


def padded(count: int, sizes: Sequence[int]) -> int:
    """The smallest of ascending `sizes` that holds `count`; IndexError where none does."""
    return sizes[bisect_left(sizes, count)]
