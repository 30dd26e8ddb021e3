"""How work is recorded on a device whose torch module has graphs in CUDA's fashion."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omniserve.devices.graph_capture import graph_capture_for


class Calls:
    """A module in the place of torch.cuda that notes what it is asked for, in order."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.options: list[dict[str, Any]] = []

    def graph_pool_handle(self) -> str:
        return "pool"

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.noted.append("replay"))

    def current_stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.noted.append("wait"))

    def Stream(self) -> Any:
        return self.current_stream()

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, graph: object, **options: Any) -> Iterator[None]:
        self.options.append(options)
        self.noted.append("begin")
        yield
        self.noted.append("end")


def test_work_is_run_before_it_is_recorded_beside_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that loads a model meanwhile may allocate."""
    takes = inspect.signature(torch.cuda.graph.__init__).parameters
    calls = Calls()
    monkeypatch.setattr(torch, "cuda", calls)
    capture = graph_capture_for(torch.device("cuda"))
    assert capture is not None
    replay = capture.capture(lambda: calls.noted.append("work"))
    assert calls.noted == ["wait", "work", "wait", "begin", "work", "end"]
    assert calls.options == [{"pool": "pool", "capture_error_mode": "thread_local"}]
    assert set(calls.options[0]) <= set(takes)
    replay()
    assert calls.noted[-1] == "replay"


def test_a_cpu_records_nothing() -> None:
    assert graph_capture_for(torch.device("cpu")) is None
