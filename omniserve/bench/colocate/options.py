"""What `omniserve bench colocate` can be told."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from omniserve.bench.colocate.control.contenders import ControlChoice
from omniserve.bench.colocate.control.loads import LOADS, LoadName
from omniserve.bench.colocate.frames import EMULATED, WHOLE
from omniserve.bench.colocate.scene import SHAPES, SceneChoice, Shape

DEFAULT_VLLM_PYTHON = Path(".venv-vllm/bin/python")
DEFAULT_OUT = Path("out/colocate")

FULL_SCENES = (
    # The first budget is where load and objectives are found: device KV is short there.
    SceneChoice(EMULATED, "one", (1, 0, 6, 32)),
    SceneChoice(WHOLE, "one", (1, 32)),
    SceneChoice(EMULATED, "two", (1,)),
    SceneChoice(WHOLE, "two", (1,)),
)
QUICK_SCENES = (SceneChoice(EMULATED, "one", (1,)),)
# LS alone should have all cores; memory for a part of the backlog, so that all means of control
# have something to do.
CONTROL_SCENES = (SceneChoice(WHOLE, "one", (8,)),)


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """Of the scenes of control; defaults are those of the full measurement."""

    scenes: tuple[SceneChoice, ...] = CONTROL_SCENES
    loads: tuple[LoadName, ...] = tuple(LOADS)
    """Empty: these scenes are left out."""
    choice: ControlChoice = "both"
    capacity: float | None = None
    """LS requests per second; None searches for what LS alone can take."""
    ttft_factor: float = 5.0
    tpot_factor: float = 5.0
    """Looser than in the comparison: with twice, two prompts that come together are too late, and
    capacity would be far below what the cores can do."""
    rounds: int = 3
    warm_up_s: float = 6.0
    duration_s: float = 20.0
    drain_s: float = 2.0
    max_tries: int = 2


@dataclass(frozen=True, slots=True)
class ColocateOptions:
    """Defaults are those of the full comparison."""

    out: Path = DEFAULT_OUT
    vllm_python: Path | None = DEFAULT_VLLM_PYTHON
    """None measures OmniServe alone."""
    model: Path | None = None
    """None makes one of 100 million parameters."""
    be_model: Path | None = None
    """For scenes of two models; None serves the same checkpoint under another name."""
    trace: str = "azure-conv"
    """A sample that ships, or a file."""
    ls_rate: float | None = None
    """Requests per second; None searches for where vLLM holds its share."""
    ls_prompt_scale: float = 0.125
    ls_output_scale: float = 0.25
    ls_max_prompt_tokens: int = 192
    ls_requests_in_kv: int = 4
    be_requests: int = 32
    be_prompt_tokens: int = 256
    be_output_tokens: int = 512
    max_step_tokens: int = 256
    be_tokens_beside_ls: int = 64
    """OmniServe's own limit, and its default."""
    step_times: str = "auto"
    """auto: the daemon measures them at its first start; else a file."""
    max_running_requests: int = 64
    scenes: tuple[SceneChoice, ...] = FULL_SCENES
    rounds: int = 3
    warm_up_s: float = 14.0
    duration_s: float = 15.0
    drain_s: float = 3.0
    unloaded_s: float = 8.0
    max_tries: int = 3
    control: ControlOptions = ControlOptions()
    seed: int = 0


QUICK_LS_RATE = 1.5


def quick(options: ColocateOptions) -> ColocateOptions:
    """A few minutes: one scene without those of control, a rate that is not searched for, shorter
    and fewer windows."""
    return replace(
        options,
        ls_rate=options.ls_rate or QUICK_LS_RATE,
        scenes=QUICK_SCENES,
        rounds=2,
        duration_s=12.0,
        drain_s=2.0,
        unloaded_s=6.0,
        max_tries=1,
        control=replace(
            options.control, loads=(), rounds=2, warm_up_s=4.0, duration_s=10.0, max_tries=1
        ),
    )


def control_only(options: ColocateOptions) -> ColocateOptions:
    """Without the comparison with other systems; all loads of control."""
    control = replace(options.control, loads=tuple(LOADS))
    return replace(options, scenes=(), vllm_python=None, control=control)


def choose_loads(
    options: ColocateOptions, load: LoadName | Literal["all", "none"] | None, choice: ControlChoice
) -> ColocateOptions:
    """Scenes of control with this load, those that the options have where none is named, and with
    these contenders; without control there is no overload, which compares control with itself."""
    loads = options.control.loads
    if load == "all" or load == "none":
        loads = tuple(LOADS) if load == "all" else ()
    elif load is not None:
        loads = (load,)
    if choice == "off":
        loads = tuple(each for each in loads if each != "overload")
    return replace(options, control=replace(options.control, choice=choice, loads=loads))


def choose_scenes(
    options: ColocateOptions,
    frames: Sequence[str] | None,
    shapes: Sequence[Shape] | None,
    be_requests_in_kv: Sequence[int] | None,
) -> ColocateOptions:
    """Only these of the options' scenes; memory budgets in place of theirs."""
    is_quick = options.scenes == QUICK_SCENES
    shapes = shapes or (("one",) if is_quick else SHAPES)
    kept = []
    for each in FULL_SCENES:
        if each.frame not in (frames or {scene.frame for scene in options.scenes}):
            continue
        budgets = each.be_requests_in_kv[:1] if is_quick else each.be_requests_in_kv
        if each.shape in shapes:
            chosen = tuple(dict.fromkeys(be_requests_in_kv or budgets))
            kept.append(replace(each, be_requests_in_kv=chosen))
    return replace(options, scenes=tuple(kept))


def choose_control_scenes(
    options: ColocateOptions,
    frames: Sequence[str] | None,
    shapes: Sequence[Shape] | None,
    be_requests_in_kv: Sequence[int] | None,
) -> ColocateOptions:
    """Every frame and shape that is named, with the memory budgets that are."""
    (default,) = CONTROL_SCENES
    budgets = tuple(dict.fromkeys(be_requests_in_kv or default.be_requests_in_kv))
    scenes = tuple(
        SceneChoice(frame, shape, budgets)
        for frame in dict.fromkeys(frames or (default.frame,))
        for shape in dict.fromkeys(shapes or (default.shape,))
    )
    return replace(options, control=replace(options.control, scenes=scenes))
