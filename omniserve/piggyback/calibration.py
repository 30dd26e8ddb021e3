"""A short look at what steps and reads cost on this machine, with and without the host's cores."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from omniserve.models.decoder import DecoderLayer, DecoderModel
from omniserve.piggyback.core_split import CoreSplit
from scheduler.offload_rule import DeviceSpeed, HostSpeed

_NUM_REPEATS = 3
_MANY_ROWS = 32
_LEAST_WEIGHT_BYTES = 256 << 20
"""Layers of so much, where the model has them: fewer would be read from caches."""
_READ_BYTES = 64 << 20
_HOST_SHARE_OF_READ = 0.7
"""Of what a core can read, what an attention kernel gets to."""


@torch.inference_mode()
def measure_host_speed(
    model: DecoderModel, core_split: CoreSplit, num_host_threads: int
) -> HostSpeed:
    """Takes tenths of a second for 100 million parameters, some seconds for billions."""
    core_split.unite()
    alone = _device_speed(model)
    core_split.split()
    beside = _device_speed(model)
    host = _HOST_SHARE_OF_READ * num_host_threads * _read_bytes_per_s(1)
    core_split.unite()
    # Whatever the number of workers, memory gives no more than it gives all cores.
    return HostSpeed(alone, beside, min(host, alone.kv_bytes_per_s))


def _device_speed(model: DecoderModel) -> DeviceSpeed:
    bytes_per_layer = 2 * model.num_parameters // max(1, model.num_layers)
    num_layers = min(model.num_layers, -(-_LEAST_WEIGHT_BYTES // bytes_per_layer))
    layers, scale = model.layers[:num_layers], model.num_layers / num_layers
    one, many = (scale * _best_s(_pass_over(model, layers, rows)) for rows in (1, _MANY_ROWS))
    row_s = max(0.0, many - one) / (_MANY_ROWS - 1)
    return DeviceSpeed(one, row_s, _read_bytes_per_s(torch.get_num_threads()))


def _pass_over(
    model: DecoderModel, layers: list[DecoderLayer], num_rows: int
) -> Callable[[], Tensor]:
    start = torch.zeros(num_rows, model.hidden_size, dtype=model.dtype)
    rotary = model.rotary.at(torch.zeros(num_rows, dtype=torch.int64))

    def run() -> Tensor:
        residual = start
        for layer in layers:
            q, _, _ = layer.pre(residual, rotary)
            residual = layer.post(residual, q.flatten(1))
        return residual

    return run


def _read_bytes_per_s(num_threads: int) -> float:
    before = torch.get_num_threads()
    data = torch.ones(_READ_BYTES // 4)
    torch.set_num_threads(num_threads)
    seconds = _best_s(data.sum)
    torch.set_num_threads(before)
    return _READ_BYTES / seconds


def _best_s(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(_NUM_REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
