"""From windows to figures, goals, table and page."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from colocate_builders import NUM_BE, make_cell, make_plan, make_scene
from run_builders import make_request, make_run

from omniserve.bench.colocate.comparison import SceneResult
from omniserve.bench.colocate.conditions import Conditions
from omniserve.bench.colocate.contenders import (
    DEVICE_ONLY,
    LS_ALONE,
    PIGGYBACKING,
    VLLM_FCFS,
    VLLM_PRIORITY,
)
from omniserve.bench.colocate.figures import Cell, Spread, figures_of, spread_of
from omniserve.bench.colocate.goals import goal_results
from omniserve.bench.colocate.measured import Measured
from omniserve.bench.colocate.objectives import Objectives, Unloaded, objectives_of, unloaded_of
from omniserve.bench.colocate.publish import publish
from omniserve.bench.run_record import RunRecord, StreamInfo
from omniserve.errors import OmniServeError


def make_result(*cells: Cell, be_in_kv: int = 1, frame_name: str = "emulated") -> SceneResult:
    unloaded = {"omniserve": Unloaded(60.0, 8.0, 9), "vllm": Unloaded(50.0, 9.0, 9)}
    conditions = Conditions(unloaded, objectives_of(unloaded), 2.0)
    return SceneResult(make_scene(frame_name, be_in_kv=be_in_kv), conditions, list(cells))


def make_window(num_be_streams: int = 1) -> RunRecord:
    """Ten seconds: four LS requests of which two meet 400 and 70 ms, and best-effort streams of
    five tokens each."""
    record = make_run(
        make_request("LS", 1.0, ttft_s=0.25, tpot_s=0.0625),
        make_request("LS", 2.0, ttft_s=0.5, tpot_s=0.0625),
        make_request("LS", 3.0, ttft_s=0.25, tpot_s=0.0625),
        make_request("LS", 4.0, num_tokens=0, outcome="failed", error="HTTP 500"),
        # Before the measured part: no request of it, and no token either.
        make_request("LS", -3.0),
    )
    record.streams = [
        StreamInfo("LS", "latency_sensitive", "chat", ttft_ms=400.0, tpot_ms=70.0),
        *(
            StreamInfo(f"BE {index}", "best_effort", "chat", is_open_loop=False)
            for index in range(num_be_streams)
        ),
    ]
    record.requests += [make_request(f"BE {index}", 5.0) for index in range(num_be_streams)]
    return record


def test_figures_of_a_window() -> None:
    figures = figures_of(make_window())
    assert (figures.num_ls, figures.num_failed) == (4, 1)
    assert (figures.ls_joint, figures.ls_ttft_share, figures.ls_tpot_share) == (0.5, 0.5, 0.75)
    assert figures.ls_ttft_p50_ms == pytest.approx(250.0)
    assert figures.be_tokens_per_s == 0.5


def test_best_effort_streams_of_all_servers_count_together() -> None:
    assert figures_of(make_window(num_be_streams=2)).be_tokens_per_s == 1.0


def test_unloaded_medians_leave_out_the_warm_up() -> None:
    record = make_run(
        make_request(at_s=-1.0, ttft_s=9.0),
        make_request(at_s=0.5, ttft_s=0.125, tpot_s=0.0625),
        make_request(at_s=1.5, ttft_s=0.25, tpot_s=0.125),
        make_request(at_s=2.5, ttft_s=0.5, tpot_s=0.25),
    )
    assert unloaded_of(record) == Unloaded(250.0, 125.0, 3)


def test_nothing_unloaded_is_an_error() -> None:
    record = make_run(make_request(num_tokens=0, outcome="failed", error="HTTP 404: no model"))
    with pytest.raises(OmniServeError, match="HTTP 404"):
        unloaded_of(record)


def test_objectives_are_those_of_the_slowest_in_each() -> None:
    unloaded = {"a": Unloaded(60.0, 8.0, 9), "b": Unloaded(50.0, 9.0, 9)}
    assert objectives_of(unloaded) == Objectives(120.0, 18.0)


def test_spreads_leave_out_what_was_not_measured() -> None:
    assert spread_of([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread_of([None]) is None


def test_ratios_are_within_a_round() -> None:
    own, peer = (
        make_cell("a", (1.0, 300.0), (1.0, 100.0)),
        make_cell("b", (1.0, 100.0), (1.0, 50.0)),
    )
    ratio = own.ratio(peer, lambda window: window.be_tokens_per_s)
    assert ratio == Spread(2.5, 2.0, 3.0)


@pytest.mark.parametrize(
    ("own_joint", "own_tokens", "verdicts"),
    [(0.995, 300.0, [True, True, True]), (0.98, 299.0, [False, True, False])],
)
def test_goals_on_an_emulated_accelerator(
    own_joint: float, own_tokens: float, verdicts: list[bool]
) -> None:
    result = make_result(
        make_cell(LS_ALONE, (1.0, 0.0)),
        make_cell(PIGGYBACKING, (own_joint, own_tokens)),
        make_cell(VLLM_PRIORITY, (0.65, 100.0)),
    )
    assert [goal.is_met for goal in goal_results([result], NUM_BE)] == verdicts


def test_attainment_is_compared_at_the_load_of_the_goal_only() -> None:
    result = make_result(
        make_cell(LS_ALONE, (1.0, 0.0)),
        make_cell(PIGGYBACKING, (1.0, 100.0)),
        make_cell(VLLM_PRIORITY, (0.05, 100.0)),
    )
    _, attainment, _ = goal_results([result], NUM_BE)
    assert (attainment.is_met, attainment.verdict) == (None, "not judged")
    assert attainment.shown == "20.00 x (vLLM holds 5%)"


@pytest.mark.parametrize(("own_joint", "is_met"), [(0.89, True), (0.88, False)])
def test_tokens_that_ls_paid_for_do_not_count(own_joint: float, is_met: bool) -> None:
    result = make_result(
        make_cell(LS_ALONE, (1.0, 0.0)),
        make_cell(PIGGYBACKING, (own_joint, 900.0)),
        make_cell(VLLM_PRIORITY, (0.899, 100.0)),
    )
    goal = goal_results([result], NUM_BE)[-1]
    assert goal.is_met is is_met
    assert ("points below vLLM's" in goal.shown) is not is_met


@pytest.mark.parametrize(
    ("frame_name", "be_in_kv", "least"),
    [("emulated", 1, "3 x"), ("emulated", 8, "1 x"), ("whole", 1, "1 x"), ("whole", 8, "1.4 x")],
)
def test_throughput_goals(frame_name: str, be_in_kv: int, least: str) -> None:
    cells = [make_cell(key, (1.0, 100.0)) for key in (LS_ALONE, PIGGYBACKING, VLLM_PRIORITY)]
    result = make_result(*cells, be_in_kv=be_in_kv, frame_name=frame_name)
    assert goal_results([result], NUM_BE)[-1].wanted == least


def test_everything_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The page shows the command.
    monkeypatch.setattr("sys.argv", ["omniserve", "bench", "colocate"])
    results = [
        make_result(
            make_cell(LS_ALONE, (1.0, 0.0), (0.9, 0.0)),
            make_cell(PIGGYBACKING, (1.0, 321.0), (0.9, 345.0)),
            make_cell(DEVICE_ONLY, (0.8, 123.0), (0.7, 125.0)),
            make_cell(VLLM_PRIORITY, (0.6, 100.0), (0.7, 100.0)),
            make_cell(VLLM_FCFS, (0.0, 150.0), (0.0, 170.0)),
            be_in_kv=number,
        )
        for number in (1, 4)
    ]
    publish(tmp_path, make_plan(), Measured(results), 100.0)
    printed = capsys.readouterr().out
    markdown = (tmp_path / "colocate.md").read_text()
    for text in (printed, markdown):
        assert "333" in text
        assert "3.33" in text
        assert "play the device" in text
    page = (tmp_path / "colocate.html").read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    # Three over the budgets, and one of each scene.
    assert len(root.findall(".//{*}svg")) == 5
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")
    content = json.loads((tmp_path / "colocate.json").read_text())
    assert len(content["scenes"]) == 2
    assert content["goals"][0]["is_met"] is True
