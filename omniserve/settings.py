"""Settings of the engine, as the front hands them over. Standard library only."""

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["auto", "cpu", "cuda", "npu"]
DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    kind: DeviceKind = "auto"
    threads: int | None = None
    """Compute threads of a CPU device; None takes every core the process may use."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    name: str
    path: str
    """Absolute path of a Hugging Face checkpoint directory."""
    dtype: DtypeName = "bfloat16"
    device_kv_bytes: int = 64 << 20
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


@dataclass(frozen=True, slots=True)
class EngineSettings:
    device: DeviceSettings
    models: tuple[ModelSettings, ...]


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


@dataclass(frozen=True, slots=True)
class ModelStats:
    """A snapshot of one model, taken at a step boundary."""

    name: str
    running: dict[str, int]
    """Running requests by tier."""
    waiting: dict[str, int]
    """Waiting requests by tier."""
    kv_used_bytes: int
    kv_total_bytes: int
    num_steps: int
    num_preemptions: int
    num_cached_prompt_tokens: int
    step_ms: float
    """Duration of the last step, in milliseconds."""
