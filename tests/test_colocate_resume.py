"""A comparison that goes on where it was stopped, and processes that end with it."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from colocate_builders import LIMITS, NUM_BE, make_plan, make_scene, make_workload
from load_builders import raw_server, response
from run_builders import make_request, make_run

from omniserve.bench.colocate.comparison import Comparison
from omniserve.bench.colocate.contenders import (
    CONTROL,
    NO_CONTROL,
    PEER,
    PLAIN,
    WITH_LANES,
    contenders,
)
from omniserve.bench.colocate.control.contenders import control_servers
from omniserve.bench.colocate.fleet import Fleet, Launch
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.options import QUICK_LS_RATE, ColocateOptions
from omniserve.bench.colocate.pinning import pin, pin_server, used_seconds
from omniserve.bench.colocate.plan import Plan, WindowKey, settle_plan
from omniserve.bench.colocate.prepare import prepare
from omniserve.bench.colocate.processes import ServerFailed, ServerProcess
from omniserve.bench.colocate.running_server import RunningServer
from omniserve.bench.colocate.server_plan import Limits, ServerPlan
from omniserve.bench.colocate.session import run_colocate
from omniserve.bench.colocate.vllm_server import answers
from omniserve.bench.colocate.waiting import poll, rest
from omniserve.bench.run_files import save_run
from omniserve.bench.run_record import RunRecord, StreamInfo
from omniserve.errors import ConfigError, OmniServeError
from omniserve.synthetic.create import write_checkpoint

PATIENCE_S = 60.0
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
"""


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """Those of this process, which has them again after the test."""
    own = os.sched_getaffinity(0)
    yield sorted(own)
    os.sched_setaffinity(0, own)


def make_launch(directory: Path) -> Launch:
    """Nothing can be started by it."""
    return Launch(LIMITS, directory / "servers", Path("/nowhere/python"), directory, 100)


def make_window(joint_within: bool = True) -> RunRecord:
    record = make_run(
        make_request("LS", 1.0, ttft_s=0.05 if joint_within else 5.0, tpot_s=0.01),
        make_request("BE", 1.0),
        duration_s=4.0,
    )
    record.streams = [
        StreamInfo("LS", "latency_sensitive", "chat", ttft_ms=100.0, tpot_ms=20.0),
        StreamInfo("BE", "best_effort", "chat", is_open_loop=False),
    ]
    return record


def save_all(plan: Plan, directory: Path) -> None:
    """Every window that the plan asks for."""
    for index, number in enumerate(plan.scenes[0].be_requests_in_kv):
        scene = make_scene(be_in_kv=number).key
        for contender in contenders(make_scene(be_in_kv=number), NUM_BE, with_vllm=True):
            for round_index in range(plan.rounds):
                key = WindowKey.of(scene, contender, round_index)
                save_run(make_window(), directory / key.path)
        for server in (PLAIN, WITH_LANES, PEER) if index == 0 else ():
            save_run(make_window(), directory / WindowKey(scene, f"unloaded-{server}").path)


def compare(plan: Plan, directory: Path) -> list[str]:
    """Runs it; returns what it said."""
    said: list[str] = []
    memory = make_scene().memory
    comparison = Comparison(plan, make_workload(), memory, make_launch(directory), directory)
    results = asyncio.run(comparison.run(said.append))
    assert [len(result.cells) for result in results] == [6, 5]
    assert all(len(cell.windows) == plan.rounds for result in results for cell in result.cells)
    return said


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    save_all(make_plan(), tmp_path)
    said = compare(make_plan(), tmp_path)
    assert not any("start" in text for text in said)


def test_a_missing_window_starts_the_servers(tmp_path: Path) -> None:
    save_all(make_plan(), tmp_path)
    scene = make_scene(be_in_kv=8)
    last = contenders(scene, NUM_BE, with_vllm=True)[-1]
    (tmp_path / WindowKey.of(scene.key, last, 1).path / "run.json").unlink()
    with pytest.raises(ServerFailed):
        compare(make_plan(), tmp_path)


def test_the_rate_is_where_vllm_holds_its_share(tmp_path: Path) -> None:
    plan = make_plan(rounds=1, ls_rate=None)
    save_all(plan, tmp_path)
    # Range 0.25 to 8: it holds everything at the first rate, nothing at the second, and so on.
    for rate, is_within in (
        ("1.41", True),
        ("3.36", False),
        ("2.18", False),
        ("1.75", True),
        ("1.95", True),
    ):
        key = WindowKey(make_scene().key, f"probe-{rate}")
        save_run(make_window(is_within), tmp_path / key.path)
    assert any("1.41 LS requests/s" in text for text in compare(plan, tmp_path))


def test_another_plan_is_refused_by_what_differs(tmp_path: Path) -> None:
    plan = make_plan()
    assert not settle_plan(plan, tmp_path)
    assert settle_plan(plan, tmp_path)
    with pytest.raises(ConfigError, match=r"duration_s: 4\.0, now 5\.0"):
        settle_plan(replace(plan, duration_s=5.0), tmp_path)


def test_a_process_is_stopped_with_its_children(tmp_path: Path) -> None:
    async def run() -> list[psutil.Process]:
        process = await ServerProcess.start(
            "sleeper", (sys.executable, "-c", PARENT), os.environ, tmp_path / "log", tmp_path
        )
        await poll(process, lambda: len(process.tree()) > 1, PATIENCE_S)
        tree = process.tree()
        await rest([process])
        await process.stop()
        return tree

    tree = asyncio.run(run())
    assert len(tree) == 2
    assert not psutil.wait_procs(tree, timeout=PATIENCE_S)[1]


def test_a_process_that_ends_quotes_its_log(tmp_path: Path) -> None:
    async def run() -> None:
        process = await ServerProcess.start(
            "loud",
            (sys.executable, "-c", "import sys; sys.exit('no such model')"),
            os.environ,
            tmp_path / "log",
            tmp_path,
        )
        try:
            await poll(process, lambda: None, PATIENCE_S)
        finally:
            await process.stop()

    with pytest.raises(ServerFailed, match=r"(?s)loud ended with status 1.*no such model"):
        asyncio.run(run())


def test_pinned_threads_of_others_stay(cores: list[int]) -> None:
    if len(cores) < 2:
        pytest.skip("needs two cores")
    own = os.getpid()
    pin(own, [cores[0]])
    assert os.sched_getaffinity(0) == {cores[0]}
    pin(own, [cores[1]], but=[cores[0]])
    assert os.sched_getaffinity(0) == {cores[0]}


def test_who_computes_goes_to_the_device_and_the_others_to_the_host(cores: list[int]) -> None:
    if len(cores) < 2:
        pytest.skip("needs two cores")
    frame = replace(make_scene().frame, device_cores=(cores[0],), host_cores=(cores[1],))
    with subprocess.Popen(["sleep", "600"]) as front:
        own = psutil.Process()
        pin_server(frame, [own, psutil.Process(front.pid)], own.name(), frame.device_cores)
        assert os.sched_getaffinity(0) == {cores[0]}
        assert os.sched_getaffinity(front.pid) == {cores[1]}
        front.kill()


def test_a_server_of_which_nobody_computes_is_refused(cores: list[int]) -> None:
    frame = replace(make_scene().frame, device_cores=tuple(cores[:1]), host_cores=tuple(cores[-1:]))
    with pytest.raises(OmniServeError, match="no process of the server is called 'nobody here'"):
        pin_server(frame, [psutil.Process()], "nobody here", frame.device_cores)


def test_used_seconds_are_those_of_all_that_live() -> None:
    own = psutil.Process()
    with subprocess.Popen(["sleep", "600"]) as ended:
        gone = psutil.Process(ended.pid)
        ended.kill()
    before_s = time.process_time()
    used_s = used_seconds([own, own, gone])
    # The kernel counts in hundredths, the user's and its own apart.
    assert 2 * before_s - 0.1 < used_s < 2 * time.process_time() + 0.1


def test_a_proxy_is_not_asked_whether_a_server_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response("200 OK", b""))
        await writer.drain()

    async def is_ready() -> bool:
        async with raw_server(ok) as url:
            end_s = time.monotonic() + PATIENCE_S
            address = url.removeprefix("http://")
            # It waits for no answer for long, as it is asked again and again.
            while not (is_there := await asyncio.to_thread(answers, address)):
                if time.monotonic() > end_s:
                    break
            return is_there

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert asyncio.run(is_ready())


def test_without_vllm_nothing_has_to_be_given(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    write_checkpoint(checkpoint, arch="qwen3", preset="tiny", dtype="bfloat16")
    prepared = prepare(ColocateOptions(out=tmp_path, vllm_python=None, model=checkpoint))
    assert prepared.plan.ls_rate == QUICK_LS_RATE


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file/out: cannot be made"):
        run_colocate(ColocateOptions(out=tmp_path / "file" / "out"))


def test_servers_that_are_told_otherwise_start_again_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleeper(plan: ServerPlan, limits: Limits, directory: Path) -> RunningServer:
        command = ("sleep", "600")
        log_path = directory / plan.key
        process = await ServerProcess.start(plan.key, command, os.environ, log_path, directory)
        return RunningServer(plan, process, "http://127.0.0.1:1", None)

    monkeypatch.setattr("omniserve.bench.colocate.fleet.start_omniserve", sleeper)
    scene, objectives = make_scene(), Objectives(100.0, 10.0)
    before, after = (
        control_servers(scene, frozenset((PLAIN, NO_CONTROL, CONTROL)), objectives),
        control_servers(scene, frozenset((PLAIN, CONTROL)), replace(objectives, tpot_ms=11.0)),
    )

    async def run() -> tuple[dict[str, int], dict[str, int], list[psutil.Process]]:
        async with Fleet(make_launch(tmp_path), lambda _: None) as fleet:
            await fleet.settle(before)
            trees = [process for each in fleet.servers.values() for process in each.process.tree()]
            first = {key: each.process.tree()[0].pid for key, each in fleet.servers.items()}
            await fleet.settle(after)
            second = {key: each.process.tree()[0].pid for key, each in fleet.servers.items()}
        return first, second, trees

    first, second, trees = asyncio.run(run())
    assert (set(first), set(second)) == ({PLAIN, NO_CONTROL, CONTROL}, {PLAIN, CONTROL})
    assert first[PLAIN] == second[PLAIN]
    assert first[CONTROL] != second[CONTROL]
    assert not psutil.wait_procs(trees, timeout=PATIENCE_S)[1]
