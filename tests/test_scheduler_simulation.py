"""Random arrivals, aborts and completions against a modelled executor."""

from collections.abc import Sequence
from copy import deepcopy

import pytest
from builders_scheduler import make_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduler_clients import VOCAB_SIZE
from scheduler_simulation import Simulation

from scheduler import Scheduler, SchedulerSettings

tokens = st.integers(0, VOCAB_SIZE - 1)


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
    data: st.DataObject, *simulations: Simulation, classes: Sequence[str] = ("ls", "be")
) -> None:
    """The same new request for each of the simulations."""
    name = f"{data.draw(st.sampled_from(classes))}{len(simulations[0].clients)}"
    most = simulations[0].settings.max_model_len - 1
    # Prompts with a common beginning, so that the prefix cache has something to find.
    prompt = [0, 1, 2, 0, 2, 1, 1, 0, 0, 2, 2, 1][: data.draw(st.integers(0, 12))]
    prompt = (prompt + data.draw(st.lists(tokens, min_size=1, max_size=5)))[:most]
    request = make_request(
        name,
        prompt,
        max_tokens=data.draw(st.integers(1, 12)),
        needs_known_tokens=data.draw(st.sampled_from([False, False, True])),
    )
    stop = data.draw(st.sampled_from([(), (), (0, 0), (1, 2), (2,)]))
    for simulation in simulations:
        simulation.add(deepcopy(request), stop)


def act(data: st.DataObject, simulation: Simulation, depth: int, overtakes: bool) -> None:
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
    action = data.draw(st.sampled_from(actions))
    if action == "add":
        draw_request(data, simulation)
    elif action == "abort":
        simulation.abort(data.draw(st.sampled_from(sorted(simulation.clients))))
    else:
        getattr(simulation, action)()


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
    simulation = Simulation(Scheduler(data.draw(scheduler_settings())))
    for _ in range(data.draw(st.integers(2, 6))):
        draw_request(data, simulation)
    for _ in range(data.draw(st.integers(5, 60))):
        act(data, simulation, depth, overtakes)
    simulation.drain(depth)
