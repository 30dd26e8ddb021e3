"""What a server of a comparison is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omniserve.bench.colocate.frames import Frame
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.placement import ANYWHERE, Placement

System = Literal["omniserve", "vllm"]

LS_TIER, BE_TIER = "interactive", "batch"
BLOCK_TOKENS = 32
"""Tokens of one KV block, for every system."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a server."""

    name: str
    path: Path
    device_kv_bytes: int
    host_kv_bytes: int
    """Where the server has KV in host memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the work of every server alike."""

    dtype: str
    max_model_len: int
    max_step_tokens: int
    max_running_requests: int
    be_tokens_beside_ls: int
    """Best-effort tokens in a step with latency-sensitive ones; vLLM has no such limit."""
    step_times: str
    """What OmniServe is told of its steps' times where it holds them to objectives: auto, none, or
    the path of a file."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server."""

    key: str
    """Unique among the servers of a scene; names its files."""
    system: System
    models: tuple[ServedModel, ...]
    """vLLM serves one."""
    frame: Frame
    piggybacking: bool = False
    objectives: Objectives | None = None
    """OmniServe's: what it holds steps to; None: it holds them to token budgets alone."""
    admission: bool = True
    """Whether it refuses latency-sensitive requests whose first token would be late."""
    on_host: bool = False
    """Whether its models compute on the host's cores, as the second server of an overflow does."""
    placement: Placement = ANYWHERE
    """Where servers that know nothing of each other share the frame's cores."""

    @property
    def compute_cores(self) -> tuple[int, ...]:
        if self.placement.cores:
            return self.placement.cores
        return self.frame.host_cores if self.on_host else self.frame.device_cores
