"""Lanes: which rows join a step, in which order, and what their books refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve.piggyback.lane_book import HOP_BUCKETS, LaneBook, LaneIntegrityError, LaneState
from omniserve.piggyback.lane_rows import LaneRows
from omniserve.piggyback.lane_table import binding_layers
from scheduler import LaneAllowance, LaneLimits

NUM_LAYERS, NUM_LANES = 3, 8


def at_most(max_rows: int) -> LaneAllowance:
    """So many rows at each layer, whatever they take."""
    return LaneAllowance(LaneLimits(max_rows), NUM_LAYERS)


def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def make_rows(width: int = 4) -> LaneRows:
    return LaneRows.empty(NUM_LAYERS, width, NUM_LANES, torch.device("cpu"))


def book_with_results(*results: tuple[int, int]) -> LaneBook:
    """`results`: (lane, layer) in the order in which they came; context of lane i is 10 + i."""
    book = LaneBook(NUM_LANES, NUM_LAYERS)
    for lane, layer in results:
        leave_at(book, lane, layer)
        book.attended(ints(lane), ints(layer))
    return book


def leave_at(book: LaneBook, lane: int, layer: int, step: int = 1) -> None:
    """As if its row had come to that layer."""
    book.enter(make_rows(), ints(lane), ints(10 + lane))
    rows = make_rows()
    rows.fill(ints(layer), ints(lane), ints(10 + lane))
    book.leave(rows, range(NUM_LAYERS), step)


def test_rows_join_behind_their_layer_in_the_order_of_their_results() -> None:
    book, rows = book_with_results((5, 1), (2, 0), (7, 1), (1, 1)), make_rows()
    assert book.bind(rows, range(1, NUM_LAYERS + 1), at_most(2), step=3) == 3
    assert rows.of(1).tolist() == [2]
    assert rows.of(2).tolist() == [5, 7]
    assert rows.of(3).tolist() == []
    assert rows.positions[2, :2].tolist() == [14, 16]
    assert rows.lanes[2, 2:].tolist() == [NUM_LANES, NUM_LANES]
    assert book.count(LaneState.READY) == 1


def test_the_device_sees_the_same_rows() -> None:
    book, rows = book_with_results((4, 2)), make_rows()
    book.bind(rows, range(1, NUM_LAYERS + 1), at_most(2), step=3)
    assert rows.device_lanes_of(3).tolist() == [4]
    assert rows.device_positions_of(3).tolist() == [13]


def test_only_the_segments_asked_for_are_bound() -> None:
    book, rows = book_with_results((0, 0), (1, 1), (2, 2)), make_rows()
    assert book.bind(rows, range(2, 3), at_most(4), step=2) == 1
    assert rows.counts.tolist() == [0, 0, 1, 0]


def test_hops_are_counted_in_steps() -> None:
    book = book_with_results((0, 0), (1, 1))
    book.bind(make_rows(), range(1, 2), at_most(4), step=2)
    book.bind(make_rows(), range(2, 3), at_most(4), step=7)
    assert (book.num_rows_joined, book.hop_steps_sum) == (2, 1 + 6)
    assert book.hop_counts[HOP_BUCKETS.index(1)] == 1
    assert book.hop_counts[HOP_BUCKETS.index(4)] == 1


def test_rows_are_counted_at_the_layer_that_they_left() -> None:
    book = book_with_results((0, 2), (1, 0), (2, 2))
    leave_at(book, 3, 1)
    leave_at(book, 4, 1)
    assert book.count_by_layer(LaneState.READY) == (1, 0, 2)
    assert book.count_by_layer(LaneState.ON_HOST) == (0, 2, 0)
    book.bind(make_rows(), range(1, 2), at_most(4), step=2)
    assert book.count_by_layer(LaneState.READY) == (0, 0, 2)


def test_results_of_another_layer_are_refused() -> None:
    book = LaneBook(NUM_LANES, NUM_LAYERS)
    leave_at(book, 3, 1)
    with pytest.raises(LaneIntegrityError, match="layers"):
        book.attended(ints(3), ints(2))


def test_a_lane_cannot_enter_twice() -> None:
    book = LaneBook(NUM_LANES, NUM_LAYERS)
    book.enter(make_rows(), ints(3), ints(5))
    with pytest.raises(LaneIntegrityError, match="IDLE"):
        book.enter(make_rows(), ints(3), ints(5))


def test_lanes_stop_once_nothing_of_them_is_in_flight() -> None:
    book = book_with_results((0, 0))
    book.enter(make_rows(), ints(1), ints(5))
    leave_at(book, 2, 0)
    assert book.stop(ints(0, 1, 2, 3)).tolist() == [0, 3]
    book.attended(ints(2), ints(0))
    assert book.stop(ints(1, 2)).tolist() == [2]
    book.exit(ints(1))
    assert book.stop(ints(1)).tolist() == [1]
    assert book.count(LaneState.IDLE) == NUM_LANES


def test_rows_that_the_host_has_not_are_noticed() -> None:
    book = LaneBook(NUM_LANES, NUM_LAYERS)
    leave_at(book, 1, 0)
    book.check_integrity(1)
    with pytest.raises(LaneIntegrityError, match="1 rows left, the host has 0"):
        book.check_integrity(0)


@settings(max_examples=100, deadline=None)
@given(
    st.permutations(range(NUM_LANES)),
    st.lists(st.integers(0, NUM_LAYERS - 1), min_size=NUM_LANES, max_size=NUM_LANES),
    st.integers(1, 4),
)
def test_binding_equals_a_naive_one(order: list[int], layers: list[int], max_rows: int) -> None:
    book = book_with_results(*((lane, layers[lane]) for lane in order))
    waiting = {layer: [lane for lane in order if layers[lane] == layer] for layer in range(3)}
    while any(waiting.values()):
        rows = make_rows()
        book.bind(rows, range(1, NUM_LAYERS + 1), at_most(max_rows), step=2)
        for layer, lanes in waiting.items():
            assert rows.of(layer + 1).tolist() == lanes[:max_rows]
            del lanes[:max_rows]
    assert book.count(LaneState.READY) == 0


def test_binding_points_are_evenly_spaced_and_never_more_than_layers() -> None:
    assert binding_layers(8, 1).tolist() == [0]
    assert binding_layers(8, 4).tolist() == [0, 2, 4, 6]
    assert binding_layers(3, 8).tolist() == [0, 1, 2]
