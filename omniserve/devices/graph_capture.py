"""Recording what a step launches on an accelerator, to launch all of it again at once.

Unproven on hardware: no CUDA and no Ascend machine has run this module. What is recorded, and that
it is the same step, is proven on the CPU (tests/test_step_graphs.py).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import torch


class GraphCapture(Protocol):
    """Records work once and replays it often."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What launches again all that `work` launches; never waits for it.

        `work` is run here, twice or more. It allocates what it likes, reads and writes nothing
        else than memory that is kept and stays where it is, and does not look at the device's
        results. The numbers that it takes from Python stay what they are now.

        Raises:
            RuntimeError: the device cannot record this work, or has no memory for it.
        """


class AcceleratorGraphs:
    """Graphs of a device whose torch module has them in CUDA's fashion."""

    def __init__(
        self, module: ModuleType, graph_type: Callable[[], Any], **options: object
    ) -> None:
        """module: torch.cuda or one like it; graph_type: its class of graphs; options: of each
        recording."""
        self._module: Any = module
        self._graph_type = graph_type
        self._options = options
        # One pool for all: no two graphs run at once, and none reads what another left there.
        self._pool = self._module.graph_pool_handle()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        # What is made on first use, like handles and compiled kernels, must not be recorded.
        stream = self._module.Stream()
        stream.wait_stream(self._module.current_stream())
        with self._module.stream(stream):
            work()
        self._module.current_stream().wait_stream(stream)
        graph = self._graph_type()
        with self._module.graph(graph, pool=self._pool, **self._options):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


def graph_capture_for(device: torch.device) -> GraphCapture | None:
    """None where there is nothing to gain: a CPU runs what it is told at once."""
    if device.type == "cuda":
        # Threads that load a model or give one's memory back go on meanwhile. By default whatever
        # they allocate would fail, and the recording with it.
        mode = "thread_local"
        return AcceleratorGraphs(torch.cuda, torch.cuda.CUDAGraph, capture_error_mode=mode)
    if device.type == "npu":
        from omniserve.devices import npu

        return AcceleratorGraphs(*npu.graphs())
    return None
