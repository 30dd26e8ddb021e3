"""Engines on the CPU that capture their steps, as an accelerator would."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cpu_attn.host import HostAttention
from omniserve.devices.attention import AttentionBackend
from omniserve.devices.device import Device, open_device
from omniserve.devices.sdpa import SdpaAttention
from omniserve.engine.core import Engine
from omniserve.models.row_ops import RowOps, TorchRowOps
from omniserve.piggyback.accelerator_exchange import AcceleratorExchange
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings


class Tape(TorchDispatchMode):
    """Records torch's operators with the tensors they were given.

    Like a captured graph, a replay does nothing of what Python did then: numbers stay what they
    were, tensors are the same memory, and who looks at a result cannot be recorded.
    """

    _LOOKS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._LOOKS:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value)

        for func, args, kwargs, recorded in self._calls:
            out = func(*tree_map(now, args), **tree_map(now, kwargs))
            for then, value in zip(tree_leaves(recorded), tree_leaves(out), strict=True):
                made[id(then)] = value


class TapedCapture:
    """A device whose graphs are tapes."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            work()
        self.num_captures += 1

        def replay() -> None:
            self.num_replays += 1
            tape.replay()

        return replay


class FailingCapture:
    """A device that records nothing."""

    num_captures = 0

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        raise RuntimeError("operation not permitted when stream is capturing")


@dataclasses.dataclass(frozen=True)
class CapturingDevice(Device):
    """A CPU with torch's own kernels, as those are what can be recorded."""

    capture: Any = None

    def row_ops(self, dtype: torch.dtype) -> RowOps:
        return TorchRowOps()

    def attention(
        self, kv_cache: Tensor, windows: Sequence[int | None], num_heads: int
    ) -> AttentionBackend:
        return SdpaAttention(kv_cache, windows)

    def graph_capture(self) -> Any:
        return self.capture


class LazyStream:
    """Does work when its mark is asked for: whatever changed since, it finds changed."""

    def __init__(self) -> None:
        self._queued: deque[Callable[[], object]] = deque()

    def enqueue(self, work: Callable[[], object]) -> "LazyStream":
        self._queued.append(work)
        return self

    def query(self) -> bool:
        self.drain()
        return True

    def drain(self) -> None:
        while self._queued:
            self._queued.popleft()()


def make_capturing_engine(
    capture: Any,
    *models: ModelSettings,
    pipeline_depth: int = 1,
    poll_arrivals: Callable[[], None] | None = None,
) -> Engine:
    settings = EngineSettings(DeviceSettings(kind="cpu", threads=1), tuple(models))
    opened = open_device(settings.device)
    device = CapturingDevice(opened.torch_device, "capturing", pipeline_depth, capture=capture)
    return Engine(settings, poll_arrivals=poll_arrivals, device=device)


def use_accelerator_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lane rows go to the host as those of an accelerator do."""

    def open_exchange(
        host: HostAttention,
        model: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        lose: Callable[[NDArray[np.int64]], None],
    ) -> AcceleratorExchange:
        return AcceleratorExchange(host, model, hidden_size, dtype, device, LazyStream(), lose)

    monkeypatch.setattr("omniserve.piggyback.build.open_exchange", open_exchange)
