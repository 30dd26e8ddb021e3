"""What the calibration and the process that measures for it say to each other: JSON lines."""

from typing import Literal

import msgspec

from omniserve.settings import EngineSettings, ModelInfo
from scheduler.offload_rule import HostSpeed
from scheduler.step_time import StepShape


class MeasureSteps(msgspec.Struct, tag=True, frozen=True):
    """Run the scenes of a model, each until it ran undisturbed for a number of times, or until
    they took `budget_s`; waiting for others does not count."""

    settings: EngineSettings
    model: str
    budget_s: float
    seed: int
    max_scenes: int
    patience_s: float
    """Longest wait, before every third of a second of measuring, for others to leave the cores
    alone."""
    cores: tuple[int, ...] | None = None
    """None: all that the process may use."""


class MeasureHost(msgspec.Struct, tag=True, frozen=True):
    """Run a model's best-effort decodes on the host, whatever its settings say of when."""

    settings: EngineSettings
    model: str
    budget_s: float
    seed: int
    patience_s: float
    """As for steps, before each kind of work."""


Command = MeasureSteps | MeasureHost


class Opened(msgspec.Struct, tag=True, frozen=True):
    """The engine is ready."""

    info: ModelInfo
    device: str
    num_layers: int
    pipeline_depth: int
    max_positions: int
    """Longest sequence that the model itself allows."""


class Pass(msgspec.Struct, tag=True, frozen=True):
    """Every scene that lacked undisturbed runs was run once more."""

    elapsed_s: float
    num_scenes: int
    num_lacking: int
    """Scenes that still lack such runs."""
    samples: tuple["StepSample", ...]


class StepSample(msgspec.Struct, frozen=True):
    """A step, or the mean of some in a row that differ by a token each, as its loop saw it."""

    scene: int
    place: int
    """Of the step in its scene: samples of other passes with the same two are of the same step."""
    shape: StepShape
    seconds: float
    layers_s: float
    """Host time of running, or launching, the layers."""
    around_layers_s: float
    """Host time of the rest: planning, sampling, completing, sending; without waiting."""
    others_cores: float = 0.0
    """Cores that other processes used while its scene ran."""


class HostSample(msgspec.Struct, frozen=True):
    """Some time of steady work with requests on the host."""

    seconds: float
    num_steps: int
    num_ls_rows: int
    ls_context_tokens: int
    num_offloaded: int
    mean_context: float
    """Of the offloaded requests."""
    num_rows_joined: int
    """Counted at every layer."""
    num_tokens: int
    kv_read_bytes: int


class HostMeasured(msgspec.Struct, tag=True, frozen=True):
    samples: tuple[HostSample, ...]
    copy_bytes_per_s: float
    speed: HostSpeed | None
    """As the engine's governor measures it; None where it does not."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    kind: Literal["ConfigError", "CheckpointError", "OmniServeError"]
    message: str


Answer = Opened | Pass | HostMeasured | Failed

encode = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
decode_answer = msgspec.json.Decoder(Answer).decode
