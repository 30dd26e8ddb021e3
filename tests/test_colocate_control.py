"""Scenes of control: what is sent, who serves it, what is found, and what is made of it."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from colocate_builders import (
    LIMITS,
    NUM_BE,
    make_control,
    make_figures,
    make_plan,
    make_scene,
    make_trace,
    make_workload,
)
from hypothesis import given
from hypothesis import strategies as st
from run_builders import make_request, make_run

from omniserve.bench.colocate.contenders import (
    CONTROL,
    LS_ALONE,
    NO_ADMISSION,
    NO_CONTROL,
    PLAIN,
)
from omniserve.bench.colocate.control.comparison import ControlComparison, ControlResult
from omniserve.bench.colocate.control.conditions import ControlConditions
from omniserve.bench.colocate.control.contenders import control_contenders, control_servers
from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.control.figures import (
    ControlCell,
    SliceFigures,
    lost_points,
    slice_figures,
)
from omniserve.bench.colocate.control.goals import control_goals
from omniserve.bench.colocate.control.loads import (
    LOADS,
    Load,
    LoadName,
    Slice,
    requests_of,
    slices_of,
)
from omniserve.bench.colocate.control.plots import control_picture
from omniserve.bench.colocate.figures import Cell, Spread, figures_of
from omniserve.bench.colocate.fleet import Launch
from omniserve.bench.colocate.measured import Measured
from omniserve.bench.colocate.objectives import Objectives, Unloaded
from omniserve.bench.colocate.omniserve_server import daemon_config
from omniserve.bench.colocate.processes import ServerFailed
from omniserve.bench.colocate.publish import publish
from omniserve.bench.run_files import save_run
from omniserve.bench.run_record import RunRecord, StreamInfo
from omniserve.config import load_config
from omniserve.errors import OmniServeError
from omniserve.machine import Machine

OBJECTIVES = Objectives(ttft_ms=250.0, tpot_ms=20.0)
ALL_SERVERS = frozenset((PLAIN, CONTROL, NO_CONTROL, NO_ADMISSION))


@given(
    warm_up_s=st.floats(1, 30),
    duration_s=st.floats(1, 60),
    capacity=st.floats(0.1, 50),
    name=st.sampled_from(list(LOADS)),
)
def test_slices_cover_a_window_at_rates_of_the_load(
    warm_up_s: float, duration_s: float, capacity: float, name: LoadName
) -> None:
    load = LOADS[name]
    slices = slices_of(load, capacity, warm_up_s, duration_s, "0 0")
    edges = [slices[0].start_s, *(each.end_s for each in slices)]
    assert (edges[0], edges[-1]) == (-warm_up_s, duration_s)
    assert [each.start_s for each in slices[1:]] == edges[1:-1]
    # Of the measured part, none begins before it.
    assert 0.0 in edges
    assert all(0 < each.end_s - each.start_s <= 5.0 for each in slices)
    low, high = load.low * capacity, load.high * capacity
    assert all(low * 0.999 <= each.rate <= high * 1.001 for each in slices)


def test_the_rate_is_drawn_anew_for_every_slice_and_round() -> None:
    rates = [
        each.rate
        for number in range(40)
        for each in slices_of(LOADS["bursty"], 10.0, 5.0, 15.0, f"0 {number}")
    ]
    assert len(set(rates)) == len(rates) == 160
    assert min(rates) < 3.0
    assert max(rates) > 11.0
    assert sum(rates) / len(rates) == pytest.approx(7.0, abs=0.3)


def test_every_window_has_low_and_high_rates() -> None:
    orders = set()
    for number in range(40):
        slices = slices_of(LOADS["bursty"], 10.0, 5.0, 20.0, f"0 {number}")
        # 2 to 12 requests a second, in quarters.
        quarters = [int((each.rate - 2.0) / 2.5) for each in slices if each.start_s >= 0.0]
        assert sorted(quarters) == [0, 1, 2, 3]
        orders.add(tuple(quarters))
    assert len(orders) > 10


def test_every_slice_has_the_requests_that_its_rate_says() -> None:
    slices = [Slice(-2.5, 0.0, 4.0), Slice(0.0, 5.0, 2.0), Slice(5.0, 10.0, 12.0)]
    trace = requests_of(slices, make_trace(), "0 0")
    times = [request.arrival_s - 2.5 for request in trace]
    assert times == sorted(times)
    counts = [sum(each.start_s <= at_s < each.end_s for at_s in times) for each in slices]
    assert counts == [10, 10, 60]
    known = {(each.prompt_tokens, each.output_tokens) for each in make_trace()}
    assert {(each.prompt_tokens, each.output_tokens) for each in trace} <= known
    assert trace == requests_of(slices, make_trace(), "0 0")
    assert trace != requests_of(slices, make_trace(), "0 1")


@pytest.mark.parametrize(
    ("load", "choice", "keys"),
    [
        ("steady", "both", [LS_ALONE, CONTROL, NO_CONTROL]),
        ("bursty", "on", [LS_ALONE, CONTROL]),
        ("bursty", "off", [LS_ALONE, NO_CONTROL]),
        ("overload", "both", [CONTROL, NO_ADMISSION]),
    ],
)
def test_contenders_of_a_load(load: LoadName, choice: str, keys: list[str]) -> None:
    found = control_contenders(load, choice, NUM_BE)  # type: ignore[arg-type]
    assert [each.key for each in found] == keys
    for each in found:
        sent = sum(route.num_requests for route in each.be_routes)
        assert sent == (0 if each.key == LS_ALONE else NUM_BE)
        # LS and BE of one contender share a daemon, and no two contenders share one.
        assert set(each.servers) == {each.ls_server}
    assert len({each.ls_server for each in found}) == len(found)


def test_before_objectives_are_known_only_ls_alone_is_served() -> None:
    plans = control_servers(make_scene(), ALL_SERVERS, None)
    assert [plan.key for plan in plans] == [PLAIN]
    # What runs by then stays.
    assert plans[0] in control_servers(make_scene(), ALL_SERVERS, OBJECTIVES)


def test_daemons_differ_in_what_they_are_compared_for(tmp_path: Path) -> None:
    machine = Machine(num_cores=2, memory_bytes=32 << 30, available_bytes=16 << 30)
    said = {}
    for plan in control_servers(make_scene(), ALL_SERVERS, OBJECTIVES):
        content = daemon_config(plan, LIMITS)
        path = tmp_path / f"{plan.key}.json"
        path.write_text(json.dumps(content))
        config = load_config(path, machine)
        tier, model = config.tiers[0], config.models[0]
        if plan.objectives:
            assert (tier.ttft_ms, tier.tpot_ms) == (250.0, 20.0)
        said[plan.key] = (model.step_times, tier.admission, model.piggyback.enabled)
    assert said == {
        PLAIN: ("none", True, False),
        CONTROL: ("auto", True, True),
        NO_CONTROL: ("none", True, True),
        NO_ADMISSION: ("auto", False, True),
    }


def test_servers_that_nobody_wants_are_not_started() -> None:
    plans = control_servers(make_scene(), frozenset((PLAIN, CONTROL)), OBJECTIVES)
    assert [plan.key for plan in plans] == [PLAIN, CONTROL]


def make_window(share: float = 1.0) -> RunRecord:
    """Of 20 LS requests in 10 s this share, the first ones, meet 250 ms; the others are late."""
    record = make_run(
        *(
            make_request("LS", index / 2, 0.1 if index < share * 20 else 3.0, 0.01)
            for index in range(20)
        ),
        make_request("BE", 1.0),
    )
    record.streams = [
        StreamInfo("LS", "latency_sensitive", "chat", ttft_ms=250.0, tpot_ms=20.0),
        StreamInfo("BE", "best_effort", "chat", is_open_loop=False),
    ]
    return record


def test_figures_of_slices_are_of_the_requests_due_in_them() -> None:
    record = make_window(0.5)
    refused = make_request("LS", 7.0, num_tokens=0, outcome="rejected", error="HTTP 429")
    record.requests.append(refused)
    slices = [Slice(-5.0, 0.0, 9.0), Slice(0.0, 5.0, 2.0), Slice(5.0, 10.0, 4.0)]
    first, second = slice_figures(record, slices)
    assert (first.rate, first.num_ls, first.num_within, first.num_refused) == (2.0, 10, 10, 0)
    assert (second.rate, second.num_ls, second.num_within, second.num_refused) == (4.0, 11, 0, 1)
    assert first.ttft_p90_ms == pytest.approx(100.0)
    assert second.ttft_p90_ms == pytest.approx(3000.0)
    assert second.tpot_p90_ms == pytest.approx(10.0)


def test_refused_requests_missed_of_all_sent_and_are_none_of_the_taken() -> None:
    record = make_window(0.5)
    record.requests += [
        make_request("LS", 5.0, num_tokens=0, outcome="rejected", error="HTTP 429")
        for _ in range(5)
    ]
    figures = figures_of(record)
    assert (figures.num_ls, figures.num_refused, figures.num_taken) == (25, 5, 20)
    assert figures.ls_ttft_share == pytest.approx(0.4)
    assert figures.ls_ttft_share_of_taken == pytest.approx(0.5)
    assert figures.ls_joint_of_taken == pytest.approx(0.5)
    # Five tokens of each of the ten in time, in ten seconds.
    assert figures.ls_goodput_tokens_per_s == pytest.approx(5.0)


def test_where_all_are_refused_nothing_is_said_of_the_taken() -> None:
    figures = make_figures(joint=0.0, num_refused=20)
    assert figures.ls_joint_of_taken is None
    assert figures.ls_ttft_share_of_taken is None


def test_points_are_of_the_requests_of_all_rounds() -> None:
    own = Cell("a", (make_figures(1.0, num_ls=10), make_figures(0.5, num_ls=30)))
    base = Cell("b", (make_figures(1.0, num_ls=10), make_figures(1.0, num_ls=30)))
    lost = lost_points(own, base, lambda each: each.ls_joint, lambda each: each.num_ls)
    assert lost == Spread(37.5, 0.0, 50.0)


def make_result(load: LoadName, **windows: tuple[float, float, int]) -> ControlResult:
    """Of (share within objectives, BE tokens/s, refused of 20) by contender, in two rounds."""
    keys = {"alone": LS_ALONE, "own": CONTROL, "none": NO_CONTROL, "unadmitted": NO_ADMISSION}
    slices = tuple(SliceFigures(at, at + 5.0, 3.0 + at, 10, 9, 1, 80.0, 9.0) for at in (0.0, 5.0))
    cells = [
        ControlCell(Cell(keys[name], (make_figures(*each), make_figures(*each))), (slices, slices))
        for name, each in windows.items()
    ]
    conditions = ControlConditions(Unloaded(50.0, 10.0, 9), OBJECTIVES, 4.0, 5.0)
    return ControlResult(make_scene("whole"), LOADS[load], conditions, tuple(cells))


@pytest.mark.parametrize(
    ("load", "own", "none", "verdicts"),
    [
        ("steady", (0.99, 85.0, 0), (0.9, 100.0, 0), [True, True]),
        ("steady", (0.98, 84.0, 0), (0.9, 100.0, 0), [False, False]),
        ("bursty", (0.97, 90.0, 0), (0.89, 100.0, 0), [True, True, True]),
        ("bursty", (0.96, 90.0, 1), (0.91, 100.0, 0), [False, False, True]),
    ],
)
def test_goals_beside_ls_alone(
    load: LoadName,
    own: tuple[float, float, int],
    none: tuple[float, float, int],
    verdicts: list[bool],
) -> None:
    result = make_result(load, alone=(1.0, 0.0, 0), own=own, none=none)
    assert [goal.is_met for goal in control_goals([result])] == verdicts


@pytest.mark.parametrize(
    # Ten of 20 refused: of those taken twice the share of all sent.
    ("sent_share", "is_met", "shown"),
    [(0.5, True, "60.0 points"), (0.34, False, "28.0 points")],
)
def test_admission_is_judged_on_the_taken_and_tells_of_all(
    sent_share: float, is_met: bool, shown: str
) -> None:
    result = make_result("overload", own=(sent_share, 9.0, 10), unadmitted=(0.4, 9.0, 0))
    (goal,) = control_goals([result])
    assert goal.is_met is is_met
    assert goal.shown.startswith(shown)
    assert f"of all sent 40% to {sent_share:.0%}; LS goodput 12 to" in goal.shown


@pytest.mark.parametrize("missing", ["own", "none", "alone"])
def test_goals_need_the_contenders_that_they_compare(missing: str) -> None:
    windows = {"alone": (1.0, 0.0, 0), "own": (1.0, 90.0, 0), "none": (0.8, 100.0, 0)}
    del windows[missing]
    texts = [goal.text for goal in control_goals([make_result("bursty", **windows)])]
    assert len(texts) == 1


def make_launch(directory: Path) -> Launch:
    """Nothing can be started by it."""
    return Launch(LIMITS, directory / "servers", None, directory, 100)


def compare(
    directory: Path, control: ControlPlan, share: Callable[[str], float]
) -> tuple[list[ControlResult], list[str]]:
    """With every window on disk that it asks for, of the share that `share` says for its name."""
    plan, said = make_plan(control=control), list[str]()
    workload = make_workload()
    root = directory / "windows" / f"control-{make_scene(be_in_kv=8).key}"
    names = ["unloaded"]
    if control.capacity is None:
        # 50 ms unloaded: from 1.25 to 20 requests a second.
        names += [f"capacity-{rate:g}" for rate in (5, 10, 14.14, 11.89, 10.9)]
        names += [f"capacity-{rate:g}" for rate in (2.5, 1.77, 2.1, 1.93, 1.49, 1.36)]
        names += [f"{name}-{number}" for name in names[1:] for number in (2, 3)]
    for load in control.loads:
        for contender in control_contenders(load, control.choice, NUM_BE):
            names += [f"{load}-{contender.key}-{number + 1}" for number in range(control.rounds)]
    for name in names:
        save_run(make_window(share(name)), root / name)
    unloaded = make_window()
    unloaded.requests = [make_request("LS", 1.0, 0.05, 0.01)]
    save_run(unloaded, root / "unloaded")
    saturated = make_window()
    # Of the first nothing counts: it ended in the warm-up.
    saturated.requests = [
        make_request("LS", at_s, 0.05, 0.01) for at_s in (-1.0, *(0.2 * each for each in range(50)))
    ]
    save_run(saturated, root / "throughput")
    comparison = ControlComparison(
        plan, control, workload, make_scene().memory, make_launch(directory), directory
    )
    return asyncio.run(comparison.run(said.append)), said


def test_results_are_told_apart_by_load_and_contender(tmp_path: Path) -> None:
    shares = {"steady": 1.0, "bursty": 0.5, "overload": 0.1}

    def share(name: str) -> float:
        base = shares.get(name.split("-")[0], 1.0)
        return base / 2 if NO_CONTROL in name else base

    results, _ = compare(tmp_path, make_control(), share)
    assert [result.load.name for result in results] == ["steady", "bursty", "overload"]
    joint = {
        (result.load.name, each.cell.contender): [window.ls_joint for window in each.cell.windows]
        for result in results
        for each in result.cells
    }
    assert joint["steady", CONTROL] == [1.0, 1.0]
    assert joint["bursty", NO_CONTROL] == [0.25, 0.25]
    assert joint["overload", NO_ADMISSION] == [0.1, 0.1]
    assert len(joint) == 8
    # Two slices of five seconds in a window of ten; LS alone answers five requests a second.
    rates = [each.rate for each in results[2].cells[0].slices[1]]
    assert rates == [pytest.approx(6.5)] * 2


def test_throughput_is_measured_where_a_load_goes_by_it(tmp_path: Path) -> None:
    control = replace(make_control(rounds=1), loads=("steady",))
    results, said = compare(tmp_path, control, lambda _: 1.0)
    assert results[0].conditions.throughput is None
    assert "throughput" not in said[-1]


def test_objectives_and_rates_come_from_ls_alone(tmp_path: Path) -> None:
    results, said = compare(tmp_path, make_control(rounds=1), lambda _: 1.0)
    conditions = results[0].conditions
    assert conditions.objectives.ttft_ms == pytest.approx(250.0)
    assert conditions.objectives.tpot_ms == pytest.approx(20.0)
    assert "capacity: 4 LS requests/s, which was given" in said[-1]
    assert "throughput: 5 LS requests/s" in said[-1]


@pytest.mark.parametrize(("holds_up_to", "capacity"), [(11.0, 10.9), (99.0, None), (2.0, 1.93)])
def test_capacity_is_the_highest_rate_that_ls_alone_holds(
    holds_up_to: float, capacity: float | None, tmp_path: Path
) -> None:
    def share(name: str) -> float:
        return float(float(name.split("-")[1]) <= holds_up_to) if "capacity" in name else 1.0

    control = make_control(capacity=None, rounds=1)
    if capacity is None:
        # It would go on above what is on disk, and nothing can be started.
        with pytest.raises(ServerFailed):
            compare(tmp_path, control, share)
        return
    results, said = compare(tmp_path, control, share)
    assert results[0].conditions.capacity == capacity
    assert "0% at" in said[-1]
    assert f"100% at {capacity:g} in 3 windows" in said[-1]


def test_a_server_that_holds_no_rate_is_no_measure(tmp_path: Path) -> None:
    with pytest.raises(OmniServeError, match="LS alone keeps 0% of 1.36 requests/s"):
        compare(tmp_path, make_control(capacity=None), lambda name: float("capacity" not in name))


def test_control_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["omniserve", "bench", "colocate"])
    results = [
        make_result(name, alone=(1.0, 0.0, 0), own=(0.98, 876.0, 1), none=(0.7, 987.0, 0))
        for name in ("steady", "bursty")
    ]
    results.append(make_result("overload", own=(0.5, 500.0, 10), unadmitted=(0.2, 510.0, 0)))
    plan = replace(make_plan(control=make_control()), scenes=())
    publish(tmp_path, plan, Measured(control=results), 100.0)
    printed, markdown = capsys.readouterr().out, (tmp_path / "colocate.md").read_text()
    for text in (printed, markdown):
        assert "876" in text
        assert "0.2 to 1.2 x capacity" in text
        assert "gained by admission" in text
    assert "vLLM's FCFS" not in markdown
    page = (tmp_path / "colocate.html").read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    # Attainment (of overload: three ways) or tokens, two latencies, and the rate where it moves.
    assert len(root.findall(".//{*}svg")) == 4 + 5 + 5
    content = json.loads((tmp_path / "colocate.json").read_text())
    assert [each["load"]["name"] for each in content["control"]] == list(LOADS)
    assert len(content["goals"]) == 2 + 3 + 1


def test_the_picture_of_control_needs_no_page() -> None:
    result = make_result("bursty", alone=(1.0, 0.0, 0), own=(0.98, 876.0, 1))
    text = control_picture([result])
    root = ElementTree.fromstring(text)
    assert len(root.findall(".//{*}svg[@class='chart']")) == 5
    assert "var(" not in text


def test_loads_that_stay_do_not_move() -> None:
    load = Load("steady", 0.5, 0.5)
    assert {each.rate for each in slices_of(load, 8.0, 3.0, 10.0, "x")} == {4.0}
