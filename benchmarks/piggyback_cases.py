"""What benchmarks/piggyback.py measures: who competes where, under which load, with what room."""

from dataclasses import asdict, dataclass
from typing import Any

BLOCK_TOKENS = 32
"""Tokens in one KV block of the engine."""
MAX_STEP_TOKENS = 512
_GROWTH_BLOCKS = 2
"""Blocks beyond what requests take at most, so that nobody waits for rounding."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Which cores are whose."""

    name: str
    device: str
    """cpu, cuda or npu."""
    cores: tuple[int, ...]
    """All that an engine's process may use."""
    device_threads: int | None
    """None where the device is no CPU."""
    host_threads: int
    """Cores of host attention, the last ones of `cores`."""
    device_cores: tuple[int, ...]
    """Where an engine that does not piggyback runs."""
    overflow_cores: tuple[int, ...]
    """Where the second engine runs; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of both classes. Whoever ends is replaced at once while its class is active."""

    ls_requests: int
    ls_context: int
    ls_output: int
    be_requests: int
    """Best-effort requests that want to decode, wherever they are."""
    be_output: int

    def be_total(self, context: int) -> int:
        """Most tokens of a best-effort request: prompt (one more than its context) and output."""
        return context + 1 + self.be_output

    @property
    def ls_total(self) -> int:
        return self.ls_context + 1 + self.ls_output


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the sweep before duties: one set of engines."""

    context: int
    kv_left: int | None
    """Best-effort requests whose KV the device has room for; None: all of them."""

    @property
    def kv_name(self) -> str:
        return "all" if self.kv_left is None else str(self.kv_left)

    def num_resident(self, load: Load) -> int:
        return load.be_requests if self.kv_left is None else min(self.kv_left, load.be_requests)


@dataclass(frozen=True, slots=True)
class Piggybacking:
    """How a contender piggybacks; the other settings are the engine's defaults."""

    host_kv_bytes: int
    host_attention_threads: int
    max_offloaded_requests: int
    max_resident_decodes: int | None
    max_lane_rows_beside_ls: int
    max_lane_rows: int = 64
    binding_points: int = 1
    when: str = "auto"


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """What an engine is built with."""

    device_kv_tokens: int
    max_model_len: int
    max_running_requests: int
    prompt_room_tokens: int = 0
    """Of the device's KV, what prompts pass through; no request stays there."""
    piggybacking: Piggybacking | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def room_for(
    load: Load,
    context: int,
    num_resident: int,
    piggybacking: Piggybacking | None = None,
    *,
    with_ls: bool = True,
) -> EngineRoom:
    """Device KV for the latency-sensitive requests and `num_resident` best-effort ones.

    Where none may stay, a piggybacking engine still has room for one prompt in passing.
    """
    passing = 1 if piggybacking is not None and num_resident == 0 else 0
    num_best_effort = num_resident + passing
    ls_blocks = load.ls_requests * _blocks(load.ls_total) if with_ls else 0
    be_blocks = num_best_effort * _blocks(load.be_total(context))
    return EngineRoom(
        device_kv_tokens=(ls_blocks + be_blocks + _GROWTH_BLOCKS) * BLOCK_TOKENS,
        max_model_len=max(load.ls_total, load.be_total(context) if num_best_effort else 0),
        max_running_requests=load.ls_requests * with_ls + num_best_effort + 1,
        prompt_room_tokens=passing * load.be_total(context),
        piggybacking=piggybacking,
    )


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)
