"""What a daemon's metrics say of waits behind other models' layers."""

import asyncio
from dataclasses import replace
from math import inf

import msgspec
import pytest
from colocate_builders import make_cell
from load_builders import raw_server, response
from run_builders import make_request, make_run

from omniserve.bench.colocate.goals import wait_goal
from omniserve.bench.colocate.layer_waits import (
    LayerWaits,
    WaitCounts,
    all_together,
    ask_layer_waits,
    layer_waits_of,
    note_layer_waits,
    read_layer_waits,
)
from omniserve.errors import OmniServeError

METRICS = """\
# HELP omniserve_model_wait_layers Layers of other models that ran.
# TYPE omniserve_model_wait_layers histogram
omniserve_model_wait_layers_bucket{le="0.0",model="chat"} 60.0
omniserve_model_wait_layers_bucket{le="1.0",model="chat"} 99.0
omniserve_model_wait_layers_bucket{le="+Inf",model="chat"} 100.0
omniserve_model_wait_layers_count{model="chat"} 100.0
omniserve_model_wait_layers_sum{model="chat"} 44.0
omniserve_model_wait_layers_bucket{le="0.0",model="bulk"} 1.0
omniserve_model_wait_layers_bucket{le="1.0",model="bulk"} 1.0
omniserve_model_wait_layers_bucket{le="+Inf",model="bulk"} 1.0
omniserve_model_wait_layers_sum{model="bulk"} 0.0
# HELP omniserve_model_wait_seconds Time that those layers took.
# TYPE omniserve_model_wait_seconds histogram
omniserve_model_wait_seconds_bucket{le="0.001",model="chat"} 70.0
omniserve_model_wait_seconds_bucket{le="0.003",model="chat"} 100.0
omniserve_model_wait_seconds_bucket{le="+Inf",model="chat"} 100.0
omniserve_model_wait_seconds_sum{model="chat"} 0.0625
# HELP omniserve_steps Steps of the model.
# TYPE omniserve_steps counter
omniserve_steps_total{model="chat"} 900.0
omniserve_steps_total{model="bulk"} 50.0
# HELP omniserve_step_used_seconds Predicted time of all steps.
# TYPE omniserve_step_used_seconds counter
omniserve_step_used_seconds_total{kind="overhead",model="bulk"} 0.2
omniserve_step_used_seconds_total{kind="best_effort_decode",model="bulk"} 0.6
omniserve_step_used_seconds_total{kind="overhead",model="chat"} 7.0
"""


def make_counts(*within: int, num_steps: int = 100, total: float = 0.0) -> WaitCounts:
    return WaitCounts((0.0, 1.0, 2.0), within, num_steps, total)


def make_waits(counts: WaitCounts) -> LayerWaits:
    return LayerWaits(counts, counts, num_other_steps=10, other_steps_s=0.16)


def test_metrics_are_read_by_model() -> None:
    waits = read_layer_waits(METRICS, "chat", "bulk")
    assert waits is not None
    assert waits.layers == WaitCounts((0.0, 1.0), (60, 99), 100, 44.0)
    assert waits.seconds == WaitCounts((0.001, 0.003), (70, 100), 100, 0.0625)
    assert waits.num_other_steps == 50
    assert waits.other_steps_s == pytest.approx(0.8)
    assert waits.other_layer_ms is None
    assert replace(waits, num_other_layers=8).other_layer_ms == pytest.approx(2.0)


def test_a_model_that_never_shared_its_device_has_none() -> None:
    assert read_layer_waits(METRICS, "lonely", "bulk") is None


@pytest.mark.parametrize(
    ("within", "bound"),
    [((99, 99, 100), 0.0), ((98, 99, 100), 1.0), ((0, 0, 99), 2.0), ((0, 0, 98), inf)],
)
def test_the_bound_of_a_share(within: tuple[int, ...], bound: float) -> None:
    assert make_counts(*within).bound_of(0.99) == bound


def test_what_came_since_and_what_came_together() -> None:
    before, after = make_counts(1, 2, 3, num_steps=4, total=7.0), make_counts(5, 7, 9, total=10.0)
    since = after.since(before)
    assert since == make_counts(4, 5, 6, num_steps=96, total=3.0)
    assert since.with_those_of(before) == after
    waits = make_waits(after)
    assert waits.since(None) == waits
    assert waits.since(make_waits(before)).layers == since
    together = all_together([None, make_waits(since), make_waits(before)])
    assert together is not None
    assert replace(together, other_steps_s=0.32) == LayerWaits(
        after, after, num_other_steps=20, other_steps_s=0.32
    )
    assert together.other_steps_s == pytest.approx(0.32)
    assert all_together([None]) is None


def test_words() -> None:
    waits = read_layer_waits(METRICS, "chat", "bulk")
    assert waits is not None
    assert replace(waits, num_other_layers=8).text == (
        "p99 at most 1 layers, at most 3 ms, of 100 steps; a layer takes 2.00 ms on average"
    )
    assert "more than 2 layers" in make_waits(make_counts(0, 0, 1)).text


@pytest.mark.parametrize(
    ("within", "num_steps", "verdicts"),
    [((0, 99, 100), 100, [True]), ((0, 98, 100), 100, [False]), ((0, 0, 0), 0, [])],
)
def test_goal(within: tuple[int, ...], num_steps: int, verdicts: list[bool]) -> None:
    """Of no steps nothing can be said."""
    waits = make_waits(make_counts(*within, num_steps=num_steps))
    cell = make_cell("control", (1.0, 300.0))
    cell = replace(cell, windows=(replace(cell.windows[0], layer_waits=waits),))
    assert [goal.is_met for goal in wait_goal("two models", cell)] == verdicts


def test_a_window_keeps_them_through_a_file() -> None:
    record = make_run(make_request())
    assert layer_waits_of(record) is None
    waits = make_waits(make_counts(1, 2, 3))
    record.num_layers = 8
    note_layer_waits(record, waits)
    record.facts = msgspec.json.decode(msgspec.json.encode(record.facts))
    assert layer_waits_of(record) == replace(waits, num_other_layers=8)


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
def test_a_daemon_is_asked(status: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(status, METRICS.encode()))
        await writer.drain()

    async def ask() -> LayerWaits | None:
        async with raw_server(answer) as url:
            return await asyncio.to_thread(ask_layer_waits, url, "chat", "bulk")

    if status == "200 OK":
        assert asyncio.run(ask()) == read_layer_waits(METRICS, "chat", "bulk")
    else:
        with pytest.raises(OmniServeError, match="/metrics"):
            asyncio.run(ask())
