"""Lane rows of an accelerator on their way to the host and back, on torch's CPU device.

Contexts of one token: attention over a single one is its value, whatever the scores.
"""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from host_attention_builders import make_model, make_settings, running
from host_pool_builders import make_pool
from late_stream import LateStream
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.element import Element
from cpu_attn.host import HostAttention, HostKvPool
from omniserve.devices.elements import ELEMENTS
from omniserve.piggyback.accelerator_exchange import AcceleratorExchange
from omniserve.piggyback.lane_rows import LaneRows

NUM_LANES, NUM_LAYERS, HIDDEN_SIZE = 16, 2, 8
DTYPES = {0: torch.float32, 1: torch.bfloat16}
"""By the index of the model."""


@pytest.fixture(scope="module")
def host() -> Iterator[HostAttention]:
    pools = [make_pool(ELEMENTS[dtype], num_blocks=NUM_LANES) for dtype in DTYPES.values()]
    with running([make_model(pool) for pool in pools]) as host:
        for model, pool in enumerate(pools):
            for lane, block in enumerate(pool.allocate(NUM_LANES)):
                host.set_block_table(model, lane, [block])
        yield host
    for pool in pools:
        pool.close()


class Lanes:
    """An exchange, its stream, and rows whose device side is memory of its own."""

    def __init__(self, host: HostAttention, model: int = 0) -> None:
        self.host, self.model, self.dtype = host, model, DTYPES[model]
        self.stream = LateStream()
        self.lost: list[int] = []
        self.exchange = AcceleratorExchange(
            host, model, HIDDEN_SIZE, self.dtype, torch.device("cpu"), self.stream, self._lose
        )
        self._generator = torch.Generator().manual_seed(0)

    def _lose(self, lanes: NDArray[np.int64]) -> None:
        self.lost += lanes.tolist()

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def bring(self, *lanes_by_segment: list[int]) -> LaneRows:
        """Rows with these lanes from segment 0 on, brought to the device."""
        rows = empty_rows()
        for segment, lanes in enumerate(lanes_by_segment):
            ids = np.array(lanes, dtype=np.int64)
            rows.fill(np.full(len(ids), segment), ids, np.ones(len(ids), dtype=np.int64))
        self.exchange.bring(rows, range(len(lanes_by_segment)))
        return rows

    def leave(self, rows: LaneRows, layer: int) -> tuple[Tensor, Tensor]:
        """Random rows leave, and their memory is used for something else; residuals and values."""
        count = len(rows.of(layer))
        residual, q = self.draw(count, HIDDEN_SIZE), self.draw(count, 4, 16)
        k, v = self.draw(count, 2, 16), self.draw(count, 2, 16)
        kept = residual.clone(), v.clone()
        self.exchange.leave(rows, layer, residual, q, k, v)
        for tensor in (residual, q, k, v):
            tensor.fill_(99)
        return kept

    def collect(self, count: int) -> set[tuple[int, int]]:
        """Lane and layer of so many results."""
        found: set[tuple[int, int]] = set()
        deadline = time.monotonic() + 60
        while len(found) < count:
            assert time.monotonic() < deadline, "the host does not answer"
            results = self.host.collect()
            assert not results.status.any()
            found |= set(zip(results.slot.tolist(), results.layer.tolist(), strict=True))
            time.sleep(0.001)
        return found


def empty_rows(width: int = 6) -> LaneRows:
    shape = (NUM_LAYERS + 1, width)
    return LaneRows(
        np.full(shape, NUM_LANES),
        np.zeros(shape, dtype=np.int64),
        np.zeros(NUM_LAYERS + 1, dtype=np.int64),
        torch.full(shape, -1),
        torch.full(shape, -1),
    )


def attended(values: Tensor) -> Tensor:
    """Outputs [count, 4 * 16] for values [count, 2, 16]: two query heads share a KV head."""
    return values.repeat_interleave(2, dim=1).flatten(1)


@pytest.mark.parametrize("model", DTYPES)
def test_rows_that_left_come_back_with_their_residuals_and_outputs(
    host: HostAttention, model: int
) -> None:
    lanes = Lanes(host, model)
    rows = lanes.bring([5, 0, 15])
    residuals, values = lanes.leave(rows, 0)
    lanes.stream.drain()
    lanes.exchange.pump()
    assert lanes.collect(3) == {(5, 0), (0, 0), (15, 0)}

    # Two of them join, in another order.
    rows = lanes.bring([], [15, 5])
    residual, output = lanes.exchange.join(rows, 1)
    assert torch.equal(residual, residuals[[2, 0]])
    assert torch.equal(output, attended(values)[[2, 0]])
    # The third stays as it was, while others go on.
    moved, _ = lanes.leave(rows, 1)
    residual, output = lanes.exchange.join(lanes.bring([], [0]), 1)
    assert torch.equal(residual, residuals[[1]])
    assert torch.equal(output, attended(values)[[1]])
    lanes.stream.drain()
    lanes.exchange.pump()
    assert lanes.collect(2) == {(15, 1), (5, 1)}
    residual, _ = lanes.exchange.join(lanes.bring([], [], [5, 15]), 2)
    assert torch.equal(residual, moved[[1, 0]])


def test_the_host_is_given_rows_when_they_have_arrived_and_not_before(host: HostAttention) -> None:
    lanes = Lanes(host)
    rows = lanes.bring([1, 2], [3])
    _, first = lanes.leave(rows, 0)
    _, second = lanes.leave(rows, 1)
    lanes.exchange.pump()
    assert (lanes.exchange.num_leaving, host.num_in_flight) == (3, 0)
    lanes.stream.advance()
    lanes.exchange.pump()
    assert lanes.exchange.num_leaving == 1
    assert lanes.collect(2) == {(1, 0), (2, 0)}
    lanes.stream.advance()
    lanes.exchange.pump()
    assert lanes.exchange.num_leaving == 0
    assert lanes.collect(1) == {(3, 1)}
    joined = lanes.bring([], [2, 1], [3])
    assert torch.equal(lanes.exchange.join(joined, 1)[1], attended(first)[[1, 0]])
    assert torch.equal(lanes.exchange.join(joined, 2)[1], attended(second))
    assert not lanes.lost


def test_rows_of_several_layers_that_arrive_together_keep_their_layers(host: HostAttention) -> None:
    lanes = Lanes(host)
    rows = lanes.bring([4, 6], [7, 8, 9])
    lanes.leave(rows, 0)
    _, values = lanes.leave(rows, 1)
    lanes.stream.drain()
    lanes.exchange.pump()
    assert lanes.collect(5) == {(4, 0), (6, 0), (7, 1), (8, 1), (9, 1)}
    joined = lanes.bring([], [], [9, 7])
    assert torch.equal(lanes.exchange.join(joined, 2)[1], attended(values)[[2, 0]])


def test_the_device_is_told_lanes_and_positions_of_bound_segments_alone(
    host: HostAttention,
) -> None:
    lanes = Lanes(host)
    rows = empty_rows(width=2)
    rows.fill(np.array([0, 2, 2]), np.array([3, 1, 4]), np.array([7, 9, 11]))
    lanes.exchange.bring(rows, range(2, 3))
    assert rows.device_lanes.tolist() == [[-1, -1], [-1, -1], [1, 4]]
    assert rows.device_positions.tolist() == [[-1, -1], [-1, -1], [8, 10]]
    lanes.exchange.bring(rows, range(1))
    assert rows.device_lanes.tolist() == [[3, NUM_LANES], [-1, -1], [1, 4]]
    assert rows.device_positions.tolist() == [[6, 0], [-1, -1], [8, 10]]


def test_residual_rows_have_the_size_of_the_model(host: HostAttention) -> None:
    assert Lanes(host, 0).exchange.residual_row_bytes == 4 * HIDDEN_SIZE
    assert Lanes(host, 1).exchange.residual_row_bytes == 2 * HIDDEN_SIZE


def test_lanes_that_nobody_will_attend_to_are_lost() -> None:
    pool: HostKvPool = make_pool(Element.FLOAT32, num_blocks=NUM_LANES)
    host = HostAttention([make_model(pool)], make_settings())
    for lane, block in enumerate(pool.allocate(NUM_LANES)):
        host.set_block_table(0, lane, [block])
    lanes = Lanes(host)
    rows = lanes.bring([2, 5], [3])
    lanes.leave(rows, 0)
    lanes.leave(rows, 1)
    lanes.exchange.pump()
    assert lanes.lost == []
    lanes.stream.drain()
    lanes.exchange.pump()
    assert lanes.lost == [2, 5, 3]
    assert lanes.exchange.num_leaving == 0
    host.close()
    pool.close()
