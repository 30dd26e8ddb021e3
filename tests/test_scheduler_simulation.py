"""Random arrivals, aborts and completions against a modelled executor."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from builders_scheduler import make_request
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from scheduler_clients import VOCAB_SIZE
from scheduler_simulation import Simulation

from scheduler import Scheduler, SchedulerSettings

last_tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=5)
stops = st.sampled_from([(), (), (0, 0), (1, 2), (2,)])
knows_tokens = st.sampled_from([False, False, True])

Draw = Callable[[st.SearchStrategy[Any]], Any]
"""Of a composite strategy, or of `st.data()`, where each draw costs several times as much."""


@cache
def one_of(*choices: Any) -> st.SearchStrategy[Any]:
    """Made once for the same choices: that takes longer than to draw from it."""
    return st.sampled_from(choices)


@cache
def numbers(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)


@st.composite
def scheduler_settings(draw: st.DrawFn) -> SchedulerSettings:
    """Pools that hold one full-length request and little more, or plenty."""
    block_size = draw(st.integers(1, 4))
    max_model_len = draw(st.integers(6, 20))
    num_least = -(-(max_model_len - 1) // block_size)
    return SchedulerSettings(
        num_blocks=num_least + draw(st.sampled_from([0, 0, 1, 2, 5, 40])),
        block_size=block_size,
        max_running_requests=draw(st.integers(1, 5)),
        max_step_tokens=draw(st.integers(1, 24)),
        best_effort_tokens_beside_ls=draw(st.integers(0, 8)),
        max_model_len=max_model_len,
        prefix_caching=draw(st.booleans()),
    )


def draw_request(
    draw: Draw, *simulations: Simulation, classes: Sequence[str] = ("ls", "be")
) -> None:
    """The same new request for each of the simulations."""
    name = f"{draw(one_of(*classes))}{len(simulations[0].clients)}"
    most = simulations[0].settings.max_model_len - 1
    # Prompts with a common beginning, so that the prefix cache has something to find.
    prompt = [0, 1, 2, 0, 2, 1, 1, 0, 0, 2, 2, 1][: draw(numbers(0, 12))]
    prompt = (prompt + draw(last_tokens))[:most]
    max_tokens, needs_known_tokens = draw(numbers(1, 12)), draw(knows_tokens)
    stop = draw(stops)
    for simulation in simulations:
        request = make_request(
            name, prompt, max_tokens=max_tokens, needs_known_tokens=needs_known_tokens
        )
        simulation.add(request, stop)


def act(draw: Draw, simulation: Simulation, depth: int, overtakes: bool) -> None:
    """One thing that an engine of this depth may do next."""
    actions = ["add", "add"]
    if simulation.clients:
        actions.append("abort")
    if len(simulation.flights) < depth:
        actions += ["schedule"] * 4
    if simulation.flights or simulation.overtaking:
        actions += ["advance", "complete", "complete"]
    is_passable = all(flight.plan.has_best_effort for flight in simulation.flights)
    if overtakes and is_passable and len(simulation.overtaking) < depth:
        actions += ["overtake"] * 3
    if simulation.may_drop:
        actions.append("drop")
    action = draw(one_of(*actions))
    note(action)
    if action == "add":
        draw_request(draw, simulation)
    elif action == "abort":
        simulation.abort(draw(one_of(*sorted(simulation.clients))))
    else:
        getattr(simulation, action)()


@st.composite
def busy_simulations(draw: st.DrawFn, depth: int, overtakes: bool) -> Simulation:
    """After some actions, of which none broke a rule."""
    simulation = Simulation(Scheduler(draw(scheduler_settings())))
    for _ in range(draw(numbers(2, 6))):
        draw_request(draw, simulation)
    for _ in range(draw(numbers(5, 60))):
        act(draw, simulation, depth, overtakes)
    return simulation


@pytest.mark.parametrize("overtakes", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_every_request_gets_its_tokens(depth: int, overtakes: bool, data: st.DataObject) -> None:
    """At most `depth` plans in flight; latency-sensitive ones may overtake parked ones."""
    data.draw(busy_simulations(depth, overtakes)).drain(depth)
