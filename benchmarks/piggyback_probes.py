"""Limits that benchmarks/piggyback.py holds its results to, measured in the same run.

A process of its own: how fast host attention reads keys and values, and how long the dense layers
of a step take.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cpu_attention_case import Noise
from piggyback_cases import BLOCK_TOKENS
from piggyback_process import serve

from cpu_attn.bfloat16 import to_bfloat16
from cpu_attn.host import HostAttention, HostKvPool, HostModel, HostSettings, HostStatus
from cpu_attn.kv_layout import KvLayout
from omniserve.devices.device import Device, open_device
from omniserve.devices.elements import ELEMENTS
from omniserve.models.decoder import DecoderModel
from omniserve.models.linear import can_pack
from omniserve.models.loading import DTYPES, load_config, open_model, read_model
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.settings import DeviceSettings

_POOL_BYTES = 512 << 20
"""Much more than caches hold."""
_POLL_S = 0.0001
_MIN_SAMPLES, _MAX_SAMPLES = 5, 200


class HostProbe:
    """A host attention process with as many requests of one context as its pool holds."""

    def __init__(self, model: DecoderModel, context: int, cores: tuple[int, ...]) -> None:
        element = ELEMENTS[model.dtype]
        layout = KvLayout(
            element, model.num_layers, model.num_kv_heads, model.head_dim, BLOCK_TOKENS
        )
        blocks_per_request = -(-context // BLOCK_TOKENS)
        # Enough that every worker has more than one request at any time.
        num_requests = max(4 * len(cores), _POOL_BYTES // (blocks_per_request * layout.block_bytes))
        self._layout, self._context = layout, context
        self._pool = HostKvPool(layout, num_requests * blocks_per_request * layout.block_bytes)
        host_model = HostModel(
            pool=self._pool.memory,
            num_heads=model.num_heads,
            io=element,
            max_context_len=context,
            scale=model.head_dim**-0.5,
            windows=model.windows,
        )
        self._host = HostAttention([host_model], HostSettings(cores, num_slots=num_requests))
        self._fill(num_requests, blocks_per_request)

    def _fill(self, num_requests: int, blocks_per_request: int) -> None:
        layout, noise = self._layout, Noise(seed=8)
        shape = (layout.num_layers, 1, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
        page = noise.take(*shape)
        bits = (
            to_bfloat16(page)
            if layout.element.dtype == np.uint16
            else page.astype(layout.element.dtype)
        )
        for slot in range(num_requests):
            table = self._pool.allocate(blocks_per_request)
            self._pool.copy_in(table, np.repeat(bits, blocks_per_request, axis=1))
            self._host.set_block_table(0, slot, table)

    def start(self) -> None:
        self._host.start()

    def bytes_per_s(self, seconds: float) -> float:
        """KV read a second with every request always at work, layer after layer."""
        slots = np.arange(len(self._host.slots[0].q))
        layers = np.zeros(len(slots), dtype=np.int64)
        self._host.submit_many(0, slots, layers, self._context)
        start_s = time.perf_counter()
        num_tasks = self._turn(layers, seconds)
        elapsed_s = time.perf_counter() - start_s
        self._drain(len(slots))
        token_bytes = self._layout.layer_bytes // self._layout.block_size
        return num_tasks * self._context * token_bytes / elapsed_s

    def _turn(self, layers: Any, seconds: float) -> int:
        """Sends each result's request on to its next layer, for so long; tasks that ended."""
        num_tasks, start_s = 0, time.perf_counter()
        while time.perf_counter() - start_s < seconds:
            results = self._host.collect()
            if not len(results):
                time.sleep(_POLL_S)
                continue
            if (results.status != HostStatus.OK).any():
                raise RuntimeError(f"host attention failed: {results}")
            num_tasks += len(results)
            layers[results.slot] = (results.layer + 1) % self._layout.num_layers
            self._host.submit_many(0, results.slot, layers[results.slot], self._context)
        return num_tasks

    def _drain(self, num_in_flight: int) -> None:
        while num_in_flight:
            num_in_flight -= len(self._host.collect())
            time.sleep(_POLL_S)

    def close(self) -> None:
        self._host.close()
        self._pool.close()


class DenseProbe:
    """All of a step but attention, sampling and book-keeping."""

    def __init__(self, model: DecoderModel, device: Device) -> None:
        self._model, self._device = model, device.torch_device

    @torch.inference_mode()
    def seconds(self, num_rows: int, budget_s: float) -> float:
        """The median of a step of so many rows, all of which are sampled."""
        model = self._model
        token_ids = torch.randint(256, model.vocab_size, (num_rows,), device=self._device)
        positions = torch.arange(num_rows, device=self._device)
        width = model.num_heads * model.head_dim
        attended = torch.randn(num_rows, width, device=self._device).to(model.dtype)

        def step() -> None:
            residual, rotary = model.embed(token_ids), model.rotary.at(positions)
            for layer in model.layers:
                layer.pre(residual, rotary)
                residual = layer.post(residual, attended)
            # The copy waits for the device.
            model.logits(residual).argmax(-1).tolist()

        step()
        return median(_samples(step, budget_s))


def _samples(work: Callable[[], None], budget_s: float) -> list[float]:
    samples: list[float] = []
    deadline_s = time.perf_counter() + budget_s
    while len(samples) < _MIN_SAMPLES or (
        time.perf_counter() < deadline_s and len(samples) < _MAX_SAMPLES
    ):
        start_s = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start_s)
    return samples


class Probes:
    """Obeys commands."""

    def __init__(self, settings: dict[str, Any]) -> None:
        path, dtype = Path(settings["model"]), DTYPES[settings["dtype"]]
        device = open_device(
            DeviceSettings(kind=settings["device"], threads=settings["device_threads"])
        )
        self._host_cores = tuple(settings["host_cores"])
        os.sched_setaffinity(0, settings["device_cores"])
        packs = can_pack(device.torch_device, dtype)
        weights = ModelWeights(WeightStore(), device.torch_device, packs)
        opened = open_model(path, load_config(path))
        model = read_model(opened, weights, dtype, 4096, device.row_ops(dtype))
        self._model, self._dense = model, DenseProbe(model, device)
        self._host: HostProbe | None = None

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        kind = command.pop("kind")
        handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "open_host": self._open_host,
            "host": self._host_speed,
            "close_host": self._close_host,
            "dense": self._dense_times,
        }
        return handlers[kind](**command)

    def _open_host(self, context: int) -> dict[str, Any]:
        self._host = HostProbe(self._model, context, self._host_cores)
        self._host.start()
        return {}

    def _host_speed(self, seconds: float) -> dict[str, Any]:
        assert self._host is not None
        return {"bytes_per_s": self._host.bytes_per_s(seconds)}

    def _close_host(self) -> dict[str, Any]:
        if self._host is not None:
            self._host.close()
        self._host = None
        return {}

    def _dense_times(self, rows: list[int], budget_s: float) -> dict[str, Any]:
        """Seconds of a step of each number of rows, in the order of `rows`."""
        return {"seconds": [self._dense.seconds(num_rows, budget_s) for num_rows in rows]}

    def close(self) -> None:
        self._close_host()


if __name__ == "__main__":
    serve(Probes)
