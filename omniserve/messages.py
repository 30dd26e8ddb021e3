"""Messages between front and engine: msgspec structs over ZeroMQ, one per frame."""

import msgspec

from omniserve.decision import Decision
from omniserve.requests import EngineRequest, RequestOutput, TierSettings
from omniserve.settings import EngineSettings, LoadPhase, ModelInfo, ModelSettings, ModelStats
from scheduler.step_time import LinearStepTime


class Configure(msgspec.Struct, tag=True, frozen=True):
    """Front to engine, first of all: load these models."""

    settings: EngineSettings
    ready_within_s: float = 600.0
    """The front gives the engine up where it takes longer."""


class Submit(msgspec.Struct, tag=True, frozen=True):
    request: EngineRequest


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: forget these requests and free their KV; no output follows for them."""

    request_ids: tuple[str, ...]


class SetTiers(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: the tiers are these now, also for requests that wait or run."""

    tiers: tuple[TierSettings, ...]


class SetShares(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: weights of tenants in best-effort service; all others have 1."""

    shares: dict[str, float]


class Explain(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: answer with `Explained`."""

    question: int
    """Comes back with the answer."""
    request_id: str
    """As the client knows it; the engine's ids of its sequences begin with it and a slash."""


class LoadModel(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: serve this model as well; `ModelProgress` is told until `ModelLoaded` or
    `ModelRefused` answers. No step of other models waits for it longer than a layer takes."""

    question: int
    settings: ModelSettings
    digest: str = ""
    """Of a model that slept: it is refused where its files are not any more what they were."""


class SleepModel(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: give back the memory of a model that has nothing to do, and keep what is
    its own of a KV budget: a `LoadModel` with its digest follows some day, or an `UnloadModel`.
    `ModelUnloaded` answers, also where there is no such model."""

    question: int
    model: str


class UnloadModel(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: serve this model no more, and give its memory back; what it still has to
    do fails. Also ends a load of it that is under way. `ModelUnloaded` answers, also where there
    is no such model."""

    question: int
    model: str


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Front to engine: stop at the next step boundary and exit with 0."""


class EngineReady(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: every model of `Configure` is loaded and a request would be answered."""

    models: tuple[ModelInfo, ...]
    device: str
    step_times: dict[str, LinearStepTime] = {}
    """By model: what steps are expected to take."""


class EngineFailed(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: loading failed for a reason that a restart will not mend."""

    message: str


class Outputs(msgspec.Struct, tag=True, frozen=True):
    outputs: tuple[RequestOutput, ...]


class Stats(msgspec.Struct, tag=True, frozen=True):
    """Engine to front, about every 0.25 s while working and every second when idle."""

    models: tuple[ModelStats, ...]


class Explained(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: the answer to `Explain`; empty where nothing is known of the request."""

    question: int
    timeline: tuple[Decision, ...]


class ModelProgress(msgspec.Struct, tag=True, frozen=True):
    """Engine to front, now and then while a model is loaded."""

    question: int
    phase: LoadPhase
    done_bytes: int
    """Of its weights."""
    total_bytes: int


class ModelLoaded(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: a request for the model would be answered."""

    question: int
    info: ModelInfo
    step_time: LinearStepTime | None = None


class ModelUnloaded(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: nothing is left of the model in the device's memory."""

    question: int


class ModelRefused(msgspec.Struct, tag=True, frozen=True):
    """Engine to front: the model is not loaded, and nothing else was disturbed."""

    question: int
    message: str
    is_checkpoint: bool
    """Whether the checkpoint is at fault, and not the settings or the memory of the device."""


ToEngine = (
    Configure
    | Submit
    | Abort
    | SetTiers
    | SetShares
    | Explain
    | LoadModel
    | SleepModel
    | UnloadModel
    | Shutdown
)
ToFront = (
    EngineReady
    | EngineFailed
    | Outputs
    | Stats
    | Explained
    | ModelProgress
    | ModelLoaded
    | ModelUnloaded
    | ModelRefused
)

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_front = msgspec.msgpack.Decoder(ToFront).decode
