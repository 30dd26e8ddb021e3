"""Random arrivals, copies, lanes and failures against a modelled engine with a host."""

from dataclasses import replace

import pytest
from builders_scheduler import HostBlockPool
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from scheduler_simulation import Simulation
from test_scheduler_simulation import Draw, draw_request, numbers, one_of, scheduler_settings

from scheduler import PiggybackLimits, Scheduler, SchedulerSettings

MOSTLY_BE = ("ls", "be", "be", "be")

PATIENT = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def piggyback_settings(draw: st.DrawFn) -> SchedulerSettings:
    limits = PiggybackLimits(
        num_lanes=draw(st.integers(1, 5)),
        max_lane_rows=draw(st.integers(1, 4)),
        max_lane_rows_beside_ls=draw(st.integers(0, 3)),
        max_resident_decodes=draw(st.sampled_from([None, None, 0, 1, 2])),
        return_patience=draw(st.integers(1, 6)),
    )
    return replace(draw(scheduler_settings()), piggyback=limits)


def make_simulation(draw: Draw, chosen: SchedulerSettings) -> Simulation:
    """A host pool that holds one full-length request and little more, or plenty, or too little."""
    num_least = -(-(chosen.max_model_len - 1) // chosen.block_size)
    num_blocks = max(1, num_least + draw(one_of(-1, 0, 0, 1, 2, 5, 40)))
    blocks = HostBlockPool(num_blocks)
    return Simulation(Scheduler(chosen, blocks), blocks)


def act(draw: Draw, simulation: Simulation, depth: int, overtakes: bool) -> None:
    """One thing that an engine of this depth, or its host, may do next."""
    host = simulation.host
    actions = ["add"]
    if simulation.clients:
        actions.append("abort")
    if len(simulation.flights) < depth:
        actions += ["schedule"] * 5
    if simulation.flights or simulation.overtaking:
        actions += ["advance", "complete", "complete", "complete"]
    is_passable = all(flight.plan.has_best_effort for flight in simulation.flights)
    if overtakes and is_passable and len(simulation.overtaking) < depth:
        actions += ["overtake"] * 3
    if simulation.may_drop:
        actions.append("drop")
    if host.copies:
        actions += ["land"] * 3
    on_host = sorted(lane.number for lane in host.lanes.values() if lane.where == "on_host")
    if on_host:
        actions += ["attend"] * 4
    if host.lanes:
        actions += ["quieten", "quieten"]
    if host.list_failing():
        actions.append("fail")
    actions.append("toggle")
    action = draw(one_of(*actions))
    note(action)
    if action == "add":
        draw_request(draw, simulation, classes=MOSTLY_BE)
    elif action == "abort":
        simulation.abort(draw(one_of(*sorted(simulation.clients))))
    elif action == "land":
        simulation.land(draw(one_of(*sorted(host.copies))))
    elif action == "attend":
        host.attend(draw(one_of(*on_host)))
    elif action == "fail":
        simulation.fail(host.lanes[draw(one_of(*host.list_failing()))])
    elif action == "toggle":
        simulation.scheduler.offload_allowed = draw(one_of(True, True, False))
    else:
        getattr(simulation, action)()


@st.composite
def busy_simulations(draw: st.DrawFn, depth: int, overtakes: bool) -> Simulation:
    """After some actions, of which none broke a rule."""
    simulation = make_simulation(draw, draw(piggyback_settings()))
    for _ in range(draw(numbers(2, 6))):
        draw_request(draw, simulation, classes=MOSTLY_BE)
    for _ in range(draw(numbers(5, 80))):
        act(draw, simulation, depth, overtakes)
    return simulation


@pytest.mark.parametrize("overtakes", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@PATIENT
@given(data=st.data())
def test_every_request_gets_its_tokens(depth: int, overtakes: bool, data: st.DataObject) -> None:
    """Whatever is offloaded, returns, fails, is aborted or comes late on the way."""
    data.draw(busy_simulations(depth, overtakes)).drain(depth)


def ls_rows(simulation: Simulation) -> list[tuple[str, int, int]]:
    """Latency-sensitive rows of the plan in flight, if there is one."""
    return [
        (rows.request_id, rows.start, rows.num_tokens)
        for flight in simulation.flights
        for rows in flight.plan.rows
        if rows.request_id.startswith("ls")
    ]


@settings(PATIENT, max_examples=40)
@given(data=st.data())
def test_latency_sensitive_plans_are_those_without_piggybacking(data: st.DataObject) -> None:
    """Where memory is ample, whatever best-effort requests do; but prefixes that these leave in the
    cache are there at other times."""
    chosen = replace(
        data.draw(piggyback_settings()),
        num_blocks=400,
        max_running_requests=64,
        prefix_caching=False,
    )
    hosting = make_simulation(data.draw, chosen)
    plain = Simulation(Scheduler(replace(chosen, piggyback=None)))
    for _ in range(data.draw(st.integers(5, 40))):
        if len(plain.clients) < 20 and data.draw(st.booleans()):
            draw_request(data.draw, hosting, plain)
        hosting.schedule()
        plain.schedule()
        assert ls_rows(hosting) == ls_rows(plain)
        for simulation in (hosting, plain):
            if simulation.flights:
                simulation.complete()
        if data.draw(st.booleans()):
            hosting.let_host_catch_up()
    hosting.drain(1)
    plain.drain(1)
