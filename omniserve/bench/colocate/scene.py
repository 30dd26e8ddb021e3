"""A scene: the frame, the models and the memory under which contenders are compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omniserve.bench.colocate.frames import Frame
from omniserve.bench.colocate.server_plan import BLOCK_TOKENS, ServedModel

Shape = Literal["one", "two"]
"""one: LS and BE on one model; two: each on a model of its own."""
SHAPES: tuple[Shape, ...] = ("one", "two")
LS_MODEL, BE_MODEL = "chat", "bulk"


@dataclass(frozen=True, slots=True)
class Memory:
    """KV of a scene in tokens of one request each, and what they take."""

    kv_bytes_per_token: int
    ls_tokens: int
    """All that latency-sensitive work is expected to hold at the same time."""
    be_request_tokens: int
    """What one best-effort request holds at its end."""
    host_tokens: int
    longest_tokens: int
    """Of any request; a pool that cannot hold them is refused everywhere."""

    def ls_bytes(self) -> int:
        return max(_block_bytes(self.ls_tokens, self.kv_bytes_per_token), self._least_bytes())

    def be_bytes(self, num_requests: int) -> int:
        one = _block_bytes(self.be_request_tokens, self.kv_bytes_per_token)
        return num_requests * one

    def own_be_bytes(self, num_requests: int) -> int:
        """Of a pool that best-effort requests have to themselves."""
        return max(self.be_bytes(num_requests), self._least_bytes())

    def _least_bytes(self) -> int:
        # vLLM keeps one block to itself.
        return _block_bytes(self.longest_tokens + BLOCK_TOKENS, self.kv_bytes_per_token)

    def host_bytes(self) -> int:
        return _block_bytes(self.host_tokens, self.kv_bytes_per_token)


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """Checkpoints of both streams; in shape `one` the first serves both."""

    ls: Path
    be: Path


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything but the contender."""

    frame: Frame
    shape: Shape
    be_requests_in_kv: int
    """Best-effort requests for which the device has KV beside what LS holds; 0: LS fills it."""
    memory: Memory
    paths: ModelPaths

    @property
    def key(self) -> str:
        """Names its files."""
        return f"{self.frame.name}-{self.shape}-kv{self.be_requests_in_kv}"

    @property
    def title(self) -> str:
        return f"{self.frame.name}, {self.shape_title}, {self.kv_title}"

    @property
    def shape_title(self) -> str:
        return f"LS and BE on {self.shape} model{'' if self.shape == 'one' else 's'}"

    @property
    def kv_title(self) -> str:
        return f"device KV for LS + {self.be_requests_in_kv} BE"

    @property
    def device_kv_bytes(self) -> int:
        """Of all models together."""
        return sum(model.device_kv_bytes for model in self.models())

    @property
    def ls_model(self) -> str:
        return LS_MODEL

    @property
    def be_model(self) -> str:
        return LS_MODEL if self.shape == "one" else BE_MODEL

    def models(self) -> tuple[ServedModel, ...]:
        """As a server that serves all of them has them; the KV of all together is the scene's."""
        memory, number = self.memory, self.be_requests_in_kv
        host_bytes = memory.host_bytes()
        if self.shape == "one":
            device_bytes = memory.ls_bytes() + memory.be_bytes(number)
            return (ServedModel(LS_MODEL, self.paths.ls, device_bytes, host_bytes),)
        return (
            ServedModel(LS_MODEL, self.paths.ls, memory.ls_bytes(), host_bytes),
            ServedModel(BE_MODEL, self.paths.be, memory.own_be_bytes(number), host_bytes),
        )


@dataclass(frozen=True, slots=True)
class SceneChoice:
    """A frame, a shape of models, and the memory budgets to compare in there."""

    frame: str
    shape: Shape
    be_requests_in_kv: tuple[int, ...]
    """One scene each. Load and objectives are found in the first one, and hold for all."""


def _block_bytes(num_tokens: int, kv_bytes_per_token: int) -> int:
    """Whole blocks."""
    return -(-num_tokens // BLOCK_TOKENS) * BLOCK_TOKENS * kv_bytes_per_token
