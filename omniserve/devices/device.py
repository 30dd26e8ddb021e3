"""Choosing the device and what goes with it: threads, attention backend, description."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBackend
from omniserve.devices.device_pages import DevicePages
from omniserve.devices.elastic_memory import ElasticMemory, HostPages
from omniserve.devices.graph_capture import GraphCapture, graph_capture_for
from omniserve.devices.sdpa import SdpaAttention
from omniserve.errors import ConfigError
from omniserve.models.row_ops import RowOps, TorchRowOps
from omniserve.settings import DeviceSettings


@dataclass(frozen=True, slots=True)
class Device:
    """An open device."""

    torch_device: torch.device
    description: str
    pipeline_depth: int
    """Plans in flight: 1 where the host computes itself, 2 where it only launches work."""
    kv_pages: DevicePages | None = None
    """Of an accelerator, the KV memory that its models share; None where they share none."""

    def row_ops(self, dtype: torch.dtype) -> RowOps:
        """The best row-wise operations of this device."""
        if self.torch_device.type == "cpu":
            from omniserve.devices.cpu_row_ops import CpuRowOps
            from omniserve.devices.openmp_team import OpenMpTeam

            return CpuRowOps(dtype, OpenMpTeam())
        return TorchRowOps()

    def attention(
        self, kv_cache: Tensor, windows: Sequence[int | None], num_heads: int
    ) -> AttentionBackend:
        """The best attention backend of this device for a KV cache of that dtype and shape."""
        if self.torch_device.type == "cpu":
            from omniserve.devices import cpu_attention

            layout = cpu_attention.layout_of(kv_cache)
            if layout is not None:
                return cpu_attention.CpuAttention(kv_cache, num_heads, windows, layout)
        if self.torch_device.type == "cuda":
            from omniserve.devices import flashinfer

            if flashinfer.is_usable(kv_cache):
                return flashinfer.FlashInferAttention(kv_cache, windows, num_heads)
        return SdpaAttention(kv_cache, windows)

    def elastic_page_bytes(self) -> int:
        """The least of an `elastic_memory` that can be given back.

        Raises:
            ConfigError: this device has no such memory.
        """
        if self.torch_device.type == "cpu":
            return HostPages.page_bytes
        if self.kv_pages is not None:
            return self.kv_pages.page_bytes
        raise ConfigError(
            f"device.kv_bytes: memory of a {self.torch_device.type} device cannot move between "
            "models; leave it out and give every model its device_kv_bytes"
        )

    def require_elastic_host(self) -> None:
        """Raises ConfigError where host memory that this device copies from and to cannot be given
        back while it is in use."""
        kind = self.torch_device.type
        if kind != "cpu":
            raise ConfigError(
                f"host.kv_bytes: host memory that a {kind} device copies from is page-locked, and "
                "cannot move between models; leave it out and give every model its "
                "piggyback.host_kv_bytes"
            )

    def elastic_memory(self, num_bytes: int) -> ElasticMemory:
        """Memory of which pages can be given back while the rest is in use.

        Raises OSError where the device has not so much; ask `elastic_page_bytes` first.
        """
        if self.torch_device.type == "cpu":
            return HostPages(num_bytes)
        from omniserve.devices import cuda_memory

        assert self.kv_pages is not None
        return cuda_memory.open_memory(self.kv_pages, num_bytes, self.torch_device)

    def graph_capture(self) -> GraphCapture | None:
        """How whole steps are recorded on this device; None where they are not."""
        return graph_capture_for(self.torch_device)


def open_device(settings: DeviceSettings) -> Device:
    """Opens the device that the settings name; `auto` takes an accelerator where there is one.

    Raises:
        ConfigError: the kind asked for is not on this machine, or it has not the KV memory that
            models are to share.
    """
    kind = settings.kind
    if kind == "npu":
        from omniserve.devices import npu

        npu.load()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator is not None else "cpu"
    if kind == "auto":
        kind = "cuda" if found == "cuda" else "npu" if found == "npu" else "cpu"
    if kind == "cpu":
        return _open_cpu(settings)
    if kind != found:
        raise ConfigError(f"device.kind: {kind!r} was asked for, but torch finds only {found!r}")
    device, kv_pages = torch.device(kind, 0), None
    if kind == "cuda" and settings.kv_bytes is not None:
        from omniserve.devices import cuda_memory

        kv_pages = cuda_memory.open_pages(settings.kv_bytes, device)
    return Device(device, _accelerator_name(kind), pipeline_depth=2, kv_pages=kv_pages)


def _open_cpu(settings: DeviceSettings) -> Device:
    num_cores = len(os.sched_getaffinity(0))
    threads = settings.threads or num_cores
    if threads > num_cores:
        raise ConfigError(
            f"device.threads: {threads} is more than the {num_cores} cores of this process"
        )
    torch.set_num_threads(threads)
    return Device(torch.device("cpu"), f"cpu, {threads} threads", pipeline_depth=1)


def _accelerator_name(kind: str) -> str:
    module = torch.get_device_module(kind)
    name = getattr(module, "get_device_name", lambda index: kind)(0)
    return f"{kind}, {name}"
