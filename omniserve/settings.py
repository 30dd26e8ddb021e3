"""Settings of the engine, as the front hands them over. Needs nothing but the policy."""

from dataclasses import dataclass, field
from typing import Literal

from scheduler.step_time import LinearStepTime

DeviceKind = Literal["auto", "cpu", "cuda", "npu"]
LoadPhase = Literal["checking", "reading", "warming_up", "measuring"]
DtypeName = Literal["float32", "bfloat16", "float16"]


TOKENS_BESIDE_LS = 64
"""Best-effort tokens beside latency-sensitive ones where nothing tells what they take."""
ROWS_BESIDE_LS_ON_CPU = 8
"""Lane rows likewise: each of them costs a CPU device time; an accelerator hardly notices."""
WAIT_LAYER_BOUNDS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
WAIT_SECOND_BOUNDS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Upper bounds of the buckets of `LayerWaitStats`; behind the last one of each is one more."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    kind: DeviceKind = "auto"
    threads: int | None = None
    """Compute threads of a CPU device; None takes every core the process may use."""
    kv_bytes: int | None = None
    """KV memory of all models together; None: each has its `device_kv_bytes` for itself."""


@dataclass(frozen=True, slots=True)
class PiggybackSettings:
    """How best-effort decodes of a model run on the host."""

    host_kv_bytes: int
    """Size of the model's KV pool in host memory; with a budget for all models, the most that it
    may have."""
    host_kv_floor_bytes: int | None = None
    """Of that budget, kept for this model whenever it wants it; None: half of an even share."""
    host_attention_threads: int = 1
    """Cores that attend on the host; of several models the largest number counts."""
    max_offloaded_requests: int = 256
    max_lane_rows: int = 64
    """Most rows that join a step at one layer."""
    max_lane_rows_beside_ls: int = 8
    """The same in a step that also carries latency-sensitive rows."""
    max_resident_decodes: int | None = None
    """Best-effort decodes that may stay on the device; None: as many as its memory holds."""
    max_device_kv_share: float = 1.0
    """Part of the device's KV that best-effort decodes may hold."""
    binding_points: int = 1
    """Times in a step at which results that have come join it; 1 is its start."""
    when: Literal["auto", "always"] = "auto"
    """auto leaves it off while the device alone is predicted to serve best-effort work faster."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    name: str
    path: str
    """Absolute path of a Hugging Face checkpoint directory, or, with a base, of an adapter's."""
    dtype: DtypeName = "bfloat16"
    device_kv_bytes: int = 64 << 20
    """Size of the model's KV pool; with a budget for all models, the most that it may have."""
    device_kv_floor_bytes: int | None = None
    """Of that budget, kept for this model whenever it wants it; None: half of an even share."""
    max_model_len: int | None = None
    """Longest prompt plus output, in tokens; None takes what config and KV pool allow."""
    block_size: int = 32
    """Tokens in one KV block."""
    max_running_requests: int = 64
    max_step_tokens: int = 512
    """Most rows (tokens) of one step."""
    best_effort_tokens_beside_ls: int = 64
    """Most best-effort rows of a step that also carries latency-sensitive rows."""
    prefix_caching: bool = True
    piggyback: PiggybackSettings | None = None
    """None: best-effort decodes run on the device only."""
    kv_reserve_share: float | None = None
    """Best-effort requests are admitted while their KV, as it is expected to grow, leaves this
    part of device and host memory free; None: while there is room for them at their start."""
    step_time: LinearStepTime | None = None
    """What its steps take on this machine; None: only token budgets limit them."""
    measures_step_time: bool = False
    """Whether the engine finds out what its steps take before it is ready, where nobody has."""
    base: str | None = None
    """Absolute path of the base's checkpoint directory, where the model is an adapter of it."""

    @property
    def checkpoint_path(self) -> str:
        """Of the directory that has config.json, tokenizer and all weights but an adapter's."""
        return self.path if self.base is None else self.base

    @property
    def adapter_path(self) -> str | None:
        """None where it is no adapter."""
        return None if self.base is None else self.path


@dataclass(frozen=True, slots=True)
class AsleepModel:
    """A model that is served and not in memory; of a KV budget its floor stays its own."""

    settings: ModelSettings
    longest_kv_bytes: int
    """That its longest request needs."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    device: DeviceSettings
    models: tuple[ModelSettings, ...]
    host_kv_bytes: int | None = None
    """Host KV memory of all models together; None: each has its own for itself."""
    asleep: tuple[AsleepModel, ...] = ()
    """Besides `models`: they are not loaded before somebody asks for them."""

    @property
    def asleep_piggybacks(self) -> dict[str, PiggybackSettings]:
        """By model: what the host process has to have room for once they are awake."""
        models = (each.settings for each in self.asleep)
        return {each.name: each.piggyback for each in models if each.piggyback is not None}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the engine says of a loaded model once it is ready."""

    name: str
    architecture: str
    dtype: str
    vocab_size: int
    max_model_len: int
    kv_bytes_per_token: int
    device_kv_bytes: int
    """Bytes of the device KV pool that was really allocated."""
    num_parameters: int
    eos_token_ids: tuple[int, ...]
    num_layers: int
    kv_floor_bytes: int | None = None
    """Of the KV budget of all models, what is kept for this one; None without a budget."""
    host_kv_floor_bytes: int | None = None
    """The same of the host's."""
    digest: str = ""
    """Of all that was read of the checkpoint; equal where it was read as the same."""
    load_s: float = field(default=0.0, compare=False)
    """What reading and laying out took, which depends on what the machine did beside."""


@dataclass(frozen=True, slots=True)
class WeightStats:
    """The weights of a model in the device's memory; those of other models may be the same ones."""

    own_bytes: int
    """That no other model holds: what is freed where this one is unloaded."""
    shared_bytes: int
    """That at least one other model holds as well."""
    saved_bytes: int
    """This model's equal part of what sharing saves; of all models together, all that it saves."""
    shared_with: dict[str, int]
    """Bytes shared with each other model."""


@dataclass(frozen=True, slots=True)
class PiggybackStats:
    """A snapshot of a model's work on the host. Counters grow from the engine's start."""

    active: bool
    """Whether requests may be offloaded at this moment."""
    host_state: str
    """Of the host attention process: starting, ready, ending, waiting, failed, stopped."""
    num_offloaded: int
    """Requests whose KV is on the host, or on its way there or back."""
    num_ready_rows: int
    """Rows whose attention is done and that wait to join a step."""
    num_on_host: int
    """Rows whose attention is queued or being computed."""
    num_rows_joined: int
    """Counter: rows that joined a step, counted at every layer."""
    hop_steps_counts: tuple[int, ...]
    """Counter: rows that joined 0, 1, 2, 3, 4 .. 7, 8 .. 15, 16 or more steps after they left."""
    hop_steps_sum: int
    """Counter: steps between leaving and joining, over all those rows."""
    num_tokens: int
    """Counter: tokens that came out of the lanes."""
    residual_bytes: int
    """Of the rows that are between two layers now."""
    num_swaps_out: int
    num_swaps_in: int
    swap_out_bytes: int
    swap_in_bytes: int
    host_kv_read_bytes: int
    """Counter: KV that host attention was asked to read."""
    host_kv_used_bytes: int
    host_kv_total_bytes: int
    num_host_restarts: int
    num_tasks_redone: int
    host_kv_granted_bytes: int = 0
    """Host KV memory that it has now; `host_kv_total_bytes`, unless models share a budget."""
    host_kv_cached_bytes: int = 0
    """Of that, prefixes that no request holds."""
    rows_on_host_by_layer: tuple[int, ...] = ()
    """`num_on_host`, by the layer whose attention it is."""
    rows_ready_by_layer: tuple[int, ...] = ()
    """`num_ready_rows`, by the layer whose attention is done."""
    num_host_cores: int = 0
    """That host attention computes on, for all models together."""
    has_host_cores: bool = False
    """Whether they are the host's now, and not the device's."""


@dataclass(frozen=True, slots=True)
class ControlStats:
    """How a model's steps were held to objectives. Counters grow from the engine's start."""

    num_steps: int
    """Counter: steps whose time was predicted, and that nothing interrupted."""
    predicted_s: float
    """Counter: of those steps."""
    measured_s: float
    """Counter: of the same steps."""
    mean_error: float
    """Of late: |measured - predicted| / measured of a step."""
    used_s: dict[str, float]
    """Counter: predicted seconds by kind of work: overhead, latency_sensitive_decode,
    latency_sensitive_prefill, best_effort_decode, best_effort_prefill, lanes."""
    budget_s: float
    """Counter: what steps with latency-sensitive decodes might have taken."""
    aims: dict[str, float]
    """Part of the tier's time per token at which its requests are paced now."""


KV_WAIT_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Upper bounds of `KvShareStats.wait_counts`; one more count is of what took longer."""


@dataclass(frozen=True, slots=True)
class KvShareStats:
    """A model's part of the KV budget of all. Counters grow from the engine's start."""

    floor_bytes: int
    num_moves_in: int
    """Counter: times it got memory."""
    num_moves_out: int
    """Counter: times it gave some up."""
    in_bytes: int
    """Counter: that it got."""
    out_bytes: int
    """Counter: that it gave up."""
    moves_per_s: float
    """Times of both kinds a second, of late."""
    wait_counts: tuple[int, ...]
    """Counter: times it was to have more, by the time until it had all of that."""
    wait_s: float
    """Counter: of those times."""


@dataclass(frozen=True, slots=True)
class LayerWaitStats:
    """How a model shared its device with others. Counters grow from the engine's start."""

    num_parked: int
    """Counter: times a step of it stood back at a layer boundary."""
    layer_counts: tuple[int, ...]
    """Counter: steps with latency-sensitive rows, by the layers of other models that ran while they
    were in a hurry: for a first token, or as the next one had to be begun."""
    layer_sum: int
    """Counter: those layers, over all those steps."""
    second_counts: tuple[int, ...]
    """Counter: the same steps, by the time that these layers took."""
    second_sum: float
    """Counter: that time, over all those steps."""


@dataclass(frozen=True, slots=True)
class JointLayerStats:
    """Layers that were run once for steps of several models. Counters grow from the start."""

    num_layers: int
    """Counter: layers of this model's steps that were run together with those of others."""
    num_rows: int
    """Counter: rows of this model that entered them, counted at every layer."""


@dataclass(frozen=True, slots=True)
class ModelStats:
    """A snapshot of one model, taken at a step boundary."""

    name: str
    running: dict[str, int]
    """Running requests by tier, on the device or on the host."""
    waiting: dict[str, int]
    """Waiting requests by tier."""
    kv_used_bytes: int
    kv_total_bytes: int
    num_steps: int
    num_preemptions: int
    num_cached_prompt_tokens: int
    step_ms: float
    """Duration of the last step, in milliseconds."""
    piggyback: PiggybackStats | None = None
    """None where it is not enabled."""
    control: ControlStats | None = None
    """None where step times are not known."""
    kv_granted_bytes: int = 0
    """KV memory that it has now; `kv_total_bytes`, unless models share a budget."""
    kv_cached_bytes: int = 0
    """Of that, prefixes that no request holds."""
    kv_share: KvShareStats | None = None
    """None where models do not share a budget."""
    host_kv_share: KvShareStats | None = None
    """The same of the host's."""
    prefilling: tuple[str, ...] = ()
    """Ids of the requests whose prompt is being computed: they have their place, and no token."""
    layer_waits: LayerWaitStats | None = None
    """None where it never shared its device with another model."""
    weights: WeightStats | None = None
    """None where the engine does not tell."""
    joint_layers: JointLayerStats | None = None
    """None where the engine does not tell."""
