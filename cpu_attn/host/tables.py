"""The tables that workers read: where everything of each model lies in this process."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cpu_attn import kernel_task
from cpu_attn.host import worker as w
from cpu_attn.host.settings import HostModel
from cpu_attn.host.shared_memory import SharedMemory
from cpu_attn.host.slots import HostMemory, SlotArrays
from cpu_attn.paged_kernel import attention_kernel


class WorkerTables:
    """`models` and `layers` as `worker.serve` takes them, and what keeps their addresses valid.

    Compiles the models' kernels, or loads them.
    """

    def __init__(
        self, models: Sequence[HostModel], memory: HostMemory, *, num_workers: int
    ) -> None:
        num_layers = sum(model.pool.layout.num_layers for model in models)
        self.models: NDArray[np.int64] = np.zeros((len(models), w.MODEL_FIELDS), dtype=np.int64)
        self.layers: NDArray[np.int64] = np.zeros(
            (num_layers, kernel_task.NUM_FIELDS), dtype=np.int64
        )
        self._kept: list[object] = [memory]
        first_layer = 0
        for row, model, slots in zip(self.models, models, memory.slots, strict=True):
            row[w.FIRST_LAYER] = first_layer
            self._fill_model(row, model, slots, num_workers + 1)
            first_layer = self._fill_layers(first_layer, model)

    def _fill_model(
        self, row: NDArray[np.int64], model: HostModel, slots: SlotArrays, max_parts: int
    ) -> None:
        kernel = attention_kernel(model.variant)
        row[w.NUM_LAYERS] = model.pool.layout.num_layers
        row[w.NUM_BLOCKS] = model.pool.num_blocks
        row[w.BLOCK_SIZE] = model.pool.layout.block_size
        row[w.NUM_SLOTS], row[w.MAX_Q_LEN] = slots.q.shape[:2]
        row[w.MAX_BLOCKS] = model.max_blocks
        row[w.KERNEL] = kernel.address
        row[w.Q], row[w.Q_STRIDE] = slots.q.ctypes.data, slots.q.strides[0]
        row[w.K], row[w.V] = slots.k.ctypes.data, slots.v.ctypes.data
        row[w.KV_STRIDE] = slots.k.strides[0]
        row[w.OUT] = slots.out.ctypes.data
        row[w.LSE], row[w.LSE_STRIDE] = slots.lse.ctypes.data, slots.lse.strides[0]
        row[w.TABLES] = slots.block_tables.ctypes.data
        # Partial results are nobody else's business; most of them are never touched.
        stride = max_parts * _partial_bytes(model)
        partials = SharedMemory.create("omniserve-partials", len(slots.q) * stride)
        row[w.PARTIALS] = partials.address
        row[w.PARTIALS_STRIDE] = stride
        self._kept += [kernel, partials]

    def _fill_layers(self, first_layer: int, model: HostModel) -> int:
        layout = model.pool.layout
        num_bytes = model.pool.num_blocks * layout.block_bytes
        # A descriptor of its own: models may share a pool.
        pool = SharedMemory.attach(os.dup(model.pool.fd), num_bytes, huge_pages=True)
        self._kept.append(pool)
        sinks = None
        if model.sinks is not None:
            sinks = np.array(model.sinks, dtype=np.float32)
            self._kept.append(sinks)
        for layer in range(layout.num_layers):
            task = self.layers[first_layer + layer]
            task[:] = _template(model)
            task[kernel_task.CACHE] = pool.address + layer * layout.layer_bytes
            task[kernel_task.WINDOW] = model.window(layer)
            if layout.has_scales:
                task[kernel_task.SCALES] = task[kernel_task.CACHE] + layout.scales_offset
            if sinks is not None:
                task[kernel_task.SINKS] = sinks[layer].ctypes.data
        return first_layer + layout.num_layers


def _template(model: HostModel) -> NDArray[np.int64]:
    """All fields of a kernel task that neither the layer nor the slot decides."""
    layout = model.pool.layout
    task = kernel_task.new_task(
        num_kv_heads=layout.num_kv_heads,
        group_size=model.num_heads // layout.num_kv_heads,
        q_len=1,
        block_size=layout.block_size,
        scale=model.scale,
    )
    token_bytes = layout.head_dim * model.io.num_bytes
    task[kernel_task.Q_TOKEN_STRIDE] = model.num_heads * token_bytes
    task[kernel_task.OUT_TOKEN_STRIDE] = model.num_heads * token_bytes
    task[kernel_task.K_TOKEN_STRIDE] = layout.num_kv_heads * token_bytes
    task[kernel_task.V_TOKEN_STRIDE] = layout.num_kv_heads * token_bytes
    task[kernel_task.BLOCK_STRIDE] = layout.block_bytes
    task[kernel_task.SCALES_STRIDE] = layout.block_bytes if layout.has_scales else 0
    task[kernel_task.SINK_TOKENS] = model.sink_tokens
    task[kernel_task.PARTIAL_STRIDE] = _partial_bytes(model)
    return task


def _partial_bytes(model: HostModel) -> int:
    head_dim = model.pool.layout.head_dim
    used = kernel_task.partial_stride(model.num_heads, model.max_q_len, head_dim)
    return -(-used // 64) * 64
