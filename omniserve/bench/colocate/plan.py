"""What a comparison measures: everything that a figure depends on, kept beside the figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from omniserve.atomic_file import write_text
from omniserve.bench.colocate.contenders import Contender
from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.scene import SceneChoice
from omniserve.bench.colocate.server_plan import Limits
from omniserve.bench.colocate.workload import BacklogShape
from omniserve.errors import ConfigError

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """Equal plans may be continued by each other."""

    ls_model: str
    be_model: str
    """Paths of checkpoints; the second is for scenes of two models."""
    trace: str
    ls_prompt_scale: float
    ls_output_scale: float
    ls_max_prompt_tokens: int
    ls_requests_in_kv: int
    """Latency-sensitive requests of 90th-percentile length that their KV holds."""
    ls_rate: float | None
    """Requests per second; None: searched for, where vLLM holds its share."""
    backlog: BacklogShape
    limits: Limits
    scenes: tuple[SceneChoice, ...]
    rounds: int
    warm_up_s: float
    duration_s: float
    drain_s: float
    unloaded_s: float
    max_tries: int
    """Windows measured for one that other processes leave alone."""
    control: ControlPlan | None
    """None: without scenes of control."""
    seed: int
    omniserve: str
    """Its version."""
    vllm: str | None
    """Its version; None: without vLLM."""
    machine: str

    @property
    def window_s(self) -> float:
        """Load of one window, its warm-up included."""
        return self.warm_up_s + self.duration_s


@dataclass(frozen=True, slots=True)
class WindowKey:
    """Names one window within a comparison."""

    scene: str
    name: str

    @staticmethod
    def of(scene: str, contender: Contender, round_index: int) -> "WindowKey":
        return WindowKey(scene, f"{contender.key}-{round_index + 1}")

    @property
    def path(self) -> Path:
        return Path("windows", self.scene, self.name)


def settle_plan(plan: object, directory: Path) -> bool:
    """Writes the plan, a tree of data, where none is; returns whether there was one, which is to be
    continued.

    Raises ConfigError where the directory holds another one.
    """
    path = directory / PLAN_FILE
    wanted = msgspec.to_builtins(plan)
    if path.exists():
        changes = list(_changes(_read(path), wanted))
        if changes:
            raise ConfigError(
                f"--out {directory}: holds a comparison with another plan ({'; '.join(changes)}); "
                "name another directory, or ask for what it began with"
            )
        return True
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, msgspec.json.format(msgspec.json.encode(wanted), indent=2).decode() + "\n")
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    # What was read knows no tuples.
    new = msgspec.json.decode(msgspec.json.encode(new))
    names = [name for name in new if old.get(name) != new[name]]
    return [f"{name}: {old.get(name)!r}, now {new[name]!r}" for name in names]
