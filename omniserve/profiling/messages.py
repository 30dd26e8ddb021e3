"""What is said while a model is measured; between processes, as JSON lines."""

from typing import Literal

import msgspec

from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.profile import EffortName
from omniserve.settings import EngineSettings, ModelInfo
from scheduler.offload_rule import HostSpeed
from scheduler.step_time import StepShape

Phase = Literal["alone", "beside_host", "host"]
"""Steps with all the cores; those with the cores that the host leaves; work on the host."""


class Effort(msgspec.Struct, frozen=True):
    """How long a measurement may take, without what prompts and waiting for others take."""

    name: EffortName
    alone_s: float
    """For steps: each kind is run until it ran undisturbed for a number of times, or so long."""
    beside_host_s: float
    host_s: float
    max_scenes: int
    """Most kinds of load with which steps are measured."""
    max_prompt_tokens: int
    """Of such a kind, all its prompts together."""
    max_medley_steps: int
    """Of each mix of requests as traffic makes them."""
    max_works: int
    """Most kinds of work on the host, the most telling ones first."""
    patience_s: float = 0.0
    """Longest wait, before every third of a second of measuring, for others to leave the cores
    alone."""


class Measure(msgspec.Struct, tag=True, frozen=True):
    """Measure a model, alone in an engine of these settings."""

    settings: EngineSettings
    effort: Effort
    seed: int


class Identify(msgspec.Struct, tag=True, frozen=True):
    """Say what a measurement of a model would be of."""

    settings: EngineSettings


Command = Measure | Identify


class Opened(msgspec.Struct, tag=True, frozen=True):
    """The engine is ready."""

    info: ModelInfo
    measured_on: MeasuredOn
    num_layers: int
    pipeline_depth: int
    max_positions: int
    """Longest sequence that the model itself allows."""


class Progress(msgspec.Struct, tag=True, frozen=True):
    """How far a phase has come; phases follow each other, and some may be left out."""

    phase: Phase
    done: float
    """Of the phase, 0 to 1."""


class Steps(msgspec.Struct, tag=True, frozen=True):
    """Some scenes were run once more."""

    phase: Phase
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
    """Of KV, from the device to the host and back: the mean."""
    speed: HostSpeed | None
    """As the engine's governor measures it; None where it does not."""
    steps: tuple[StepSample, ...] = ()
    """Single ones with latency-sensitive rows beside lane rows."""


class Identified(msgspec.Struct, tag=True, frozen=True):
    measured_on: MeasuredOn


class Failed(msgspec.Struct, tag=True, frozen=True):
    kind: Literal["ConfigError", "CheckpointError", "OmniServeError"]
    message: str


Answer = Opened | Progress | Steps | HostMeasured | Identified | Failed

encode = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
decode_answer = msgspec.json.Decoder(Answer).decode
