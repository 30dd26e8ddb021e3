"""Scenes, plans and windows of comparisons that never ran."""

from pathlib import Path

from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.control.loads import LOADS
from omniserve.bench.colocate.figures import Cell, Figures
from omniserve.bench.colocate.frames import frame
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.scene import Memory, ModelPaths, Scene, SceneChoice, Shape
from omniserve.bench.colocate.server_plan import Limits
from omniserve.bench.colocate.workload import BacklogShape, Workload
from omniserve.bench.trace.trace import Trace, TraceRequest

NUM_BE = 8
LIMITS = Limits("bfloat16", 256, 128, 16, 16, "auto")
BACKLOG = BacklogShape(NUM_BE, 100, 60)


def make_trace(num: int = 40, gap_s: float = 0.5) -> Trace:
    """Requests at even distances, all of different lengths."""
    return Trace(
        "even", tuple(TraceRequest(gap_s * index, 10 + index, 5 + index) for index in range(num))
    )


def make_scene(
    frame_name: str = "emulated",
    shape: Shape = "one",
    be_in_kv: int = 1,
    directory: str = "/models",
) -> Scene:
    """On two cores; 1 KiB of KV a token."""
    memory = Memory(
        1024, ls_tokens=500, be_request_tokens=160, host_tokens=1600, longest_tokens=256
    )
    paths = ModelPaths(Path(directory, "a"), Path(directory, "b"))
    return Scene(frame(frame_name, (0, 1)), shape, be_in_kv, memory, paths)


def make_workload(trace: Trace | None = None) -> Workload:
    return Workload(trace or make_trace(), BACKLOG, window_s=6.0, seed=0)


def make_control(capacity: float | None = 4.0, rounds: int = 2) -> ControlPlan:
    return ControlPlan(
        scenes=(SceneChoice("emulated", "one", (8,)),),
        loads=tuple(LOADS),
        choice="both",
        capacity=capacity,
        ttft_factor=5.0,
        tpot_factor=2.0,
        rounds=rounds,
        warm_up_s=2.0,
        duration_s=10.0,
        drain_s=1.0,
        max_tries=1,
    )


def make_plan(
    rounds: int = 2,
    vllm: str | None = "0.32.0",
    ls_rate: float | None = 2.0,
    control: ControlPlan | None = None,
) -> Plan:
    return Plan(
        ls_model="/models/a",
        be_model="/models/b",
        trace="even",
        ls_prompt_scale=1.0,
        ls_output_scale=1.0,
        ls_max_prompt_tokens=64,
        ls_requests_in_kv=4,
        ls_rate=ls_rate,
        backlog=BACKLOG,
        limits=LIMITS,
        scenes=(SceneChoice("emulated", "one", (1, 8)),),
        rounds=rounds,
        warm_up_s=2.0,
        duration_s=4.0,
        drain_s=1.0,
        unloaded_s=2.0,
        max_tries=2,
        control=control,
        seed=0,
        omniserve="0.1.0",
        vllm=vllm,
        machine="a machine",
    )


def make_figures(
    joint: float = 1.0, be_tokens_per_s: float = 100.0, num_refused: int = 0, num_ls: int = 20
) -> Figures:
    return Figures(
        num_ls=num_ls,
        num_refused=num_refused,
        ls_joint=joint,
        ls_ttft_share=joint,
        ls_tpot_share=1.0,
        ls_ttft_p50_ms=50.0,
        ls_ttft_p99_ms=90.0,
        ls_tpot_p50_ms=8.0,
        ls_tpot_p99_ms=12.0,
        ls_goodput_tokens_per_s=30.0 * joint,
        be_tokens_per_s=be_tokens_per_s,
        num_failed=0,
        generator_cores=0.02,
        lateness_p99_ms=0.5,
        others_cores=0.01,
    )


def make_cell(contender: str, *windows: tuple[float, float]) -> Cell:
    """Of (LS joint attainment, BE tokens/s) a round."""
    return Cell(contender, tuple(make_figures(*window) for window in windows))
