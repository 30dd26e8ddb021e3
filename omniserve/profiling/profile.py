"""What the simulator knows of one model on one machine, and its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

import msgspec

from omniserve.atomic_file import write_text
from omniserve.errors import ConfigError
from omniserve.machine import Machine
from omniserve.profiling.judged_steps import JudgedSteps
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.regular_file import read_regular_file
from scheduler.offload_rule import HostSpeed
from scheduler.step_time import LinearStepTime

MAX_FILE_BYTES = 16 << 20

EffortName = Literal["", "brief", "quick", "thorough"]
"""From the least to the most."""


@dataclass(frozen=True, slots=True)
class HostModel:
    """Attention on the host, and copies of KV to it and back."""

    kv_bytes_per_s: float
    """At which all host attention threads together read KV."""
    task_overhead_s: float = 0.0
    """Of each row at each layer, besides reading its KV."""
    result_delay_s: float = 0.0
    """From a row's leaving a step until the host begins with it, and back, besides the queue."""
    copy_bytes_per_s: float = 5e9
    """At which KV moves between device and host memory."""
    speed: HostSpeed | None = None
    """What the engine's governor measured; None: the governor is not asked, as on an accelerator
    whose cores are its own."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        _require(self, "host.", above_0=("kv_bytes_per_s", "copy_bytes_per_s"))
        _require(self, "host.", from_0=("task_overhead_s", "result_delay_s"))


@dataclass(frozen=True, slots=True)
class FrontLatency:
    """What the way between client and engine adds."""

    way_in_s: float = 0.0
    """From the client to the engine."""
    way_out_s: float = 0.0
    """Of every token, from the engine to the client: TTFT sees both, TPOT neither."""
    stolen_s_per_request: float = 0.0
    """Engine time lost to front and client on cores that they share, for each request."""
    stolen_s_per_step: float = 0.0
    """The same for each step that delivers tokens."""
    stolen_s_per_token: float = 0.0
    """The same for each token that it delivers."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one machine. Values are seconds, bytes and tokens."""

    model: str
    device: str
    """In words."""
    num_layers: int
    kv_bytes_per_token: int
    max_positions: int
    """Longest sequence that the model itself allows."""
    step_time: LinearStepTime
    pipeline_depth: int = 1
    """Plans in flight: 1 where the host computes itself, 2 where it only launches work."""
    launch_s: float = 0.0
    """Host time of launching a step's layers on a device that works by itself (depth 2)."""
    host: HostModel | None = None
    """None: piggybacking of this model cannot be simulated."""
    front: FrontLatency = FrontLatency()
    step_ratio_quantiles: tuple[float, ...] = ()
    """Measured over modelled step time, evenly spaced quantiles: steps draw from them; empty: all
    steps take what the model says."""
    warnings: tuple[str, ...] = ()
    """What makes it doubtful, in words: that others used the cores while it was measured."""
    machine: Machine | None = None
    """For which a configuration's unset values are filled in; None: this one."""
    measured_on: MeasuredOn | None = None
    """What it holds for; None where it was not measured, or by hand."""
    measured_at: str = ""
    """When, in ISO 8601."""
    effort: EffortName = ""
    """How thoroughly it was measured; empty where it was not."""
    judged: JudgedSteps = JudgedSteps()

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        counts = ("num_layers", "kv_bytes_per_token", "max_positions", "pipeline_depth")
        _require(self, above_0=counts, from_0=("launch_s",))


def _require(
    part: object, prefix: str = "", above_0: Sequence[str] = (), from_0: Sequence[str] = ()
) -> None:
    for names, allowed in ((above_0, "a number above 0"), (from_0, "a number, at least 0")):
        for name in names:
            value = getattr(part, name)
            if not (0 < value < inf or (value == 0 and name in from_0)):
                raise ConfigError(f"{prefix}{name}: {value!r} is not allowed; allowed: {allowed}")


def load_profile(path: Path) -> Profile:
    """Raises ConfigError, which names the field, where the file is not a profile."""
    try:
        raw = read_regular_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: not a profile: larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(raw, type=Profile)
    except RecursionError:
        raise ConfigError(f"{path}: not a profile: nested too deep") from None
    except (msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path}: not a profile: {error}") from None


def save_profile(profile: Profile, path: Path) -> None:
    """Writes the whole file or nothing; raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(profile), indent=2).decode()
    write_text(path, text + "\n")
