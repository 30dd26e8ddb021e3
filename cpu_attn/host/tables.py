"""The table that workers read: where everything of each model lies in this process."""

import time

import numpy as np
from numpy.typing import NDArray

from cpu_attn import kernel_task
from cpu_attn.host import worker as w
from cpu_attn.host.descriptor import MAX_MODELS
from cpu_attn.host.settings import HostModel
from cpu_attn.host.shared_memory import SharedMemory
from cpu_attn.host.slots import ModelMemory, SlotArrays
from cpu_attn.paged_kernel import attention_kernel

_POLL_S = 1e-4


class WorkerTables:
    """`models` as `worker.serve` takes it, and what keeps its addresses valid.

    Changed by one thread while workers run; how that is safe is said in `worker`.
    """

    def __init__(self, *, num_workers: int) -> None:
        self.models: NDArray[np.int64] = np.zeros((MAX_MODELS, w.MODEL_FIELDS), dtype=np.int64)
        self.scratches: list[NDArray[np.int64]] = []
        """Of the workers that run on `models`."""
        self._max_parts = num_workers + 1
        self._mapped: dict[int, MappedModel] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._mapped

    def add(self, index: int, model: HostModel, memory: ModelMemory, pool_fd: int) -> None:
        """The row of a free index; compiles the model's kernel, or loads it, before it is seen.

        Takes `memory` and `pool_fd` over, also where it raises: ValueError for a pool of another
        size, OSError where there is too little memory.
        """
        assert index not in self._mapped
        mapped = MappedModel(model, memory, pool_fd, self._max_parts)
        self.models[index, : w.STATE] = mapped.row[: w.STATE]
        self._mapped[index] = mapped
        w.set_state(self.models, index, w.PRESENT)

    def remove(self, index: int) -> None:
        """Frees the index and unmaps the model's memory; waits for parts that workers are at."""
        w.set_state(self.models, index, w.ABSENT)
        for scratch in self.scratches:
            seen = w.read_busy(scratch)
            while seen % 2 and w.read_busy(scratch) == seen:
                time.sleep(_POLL_S)
        self.models[index] = 0
        self._mapped.pop(index).close()


class MappedModel:
    """A model's memory in this process, and its row of the table."""

    def __init__(self, model: HostModel, memory: ModelMemory, pool_fd: int, max_parts: int) -> None:
        """As WorkerTables.add says."""
        self._memories = [memory.memory]
        self.row: NDArray[np.int64] = np.zeros(w.MODEL_FIELDS, dtype=np.int64)
        try:
            layout = model.pool.layout
            pool = SharedMemory.attach(
                pool_fd, model.pool.num_blocks * layout.block_bytes, huge_pages=True
            )
            self._memories.append(pool)
            self._kernel = attention_kernel(model.variant)
            self.row[w.KERNEL] = self._kernel.address
            self._fill_layers(model, pool.address)
            self._fill_slots(model, memory.slots, max_parts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nobody may look at an address of `row` any more."""
        for memory in self._memories:
            memory.close()

    def _fill_slots(self, model: HostModel, slots: SlotArrays, max_parts: int) -> None:
        row = self.row
        row[w.NUM_BLOCKS] = model.pool.num_blocks
        row[w.BLOCK_SIZE] = model.pool.layout.block_size
        row[w.NUM_SLOTS], row[w.MAX_Q_LEN] = slots.q.shape[:2]
        row[w.MAX_BLOCKS] = model.max_blocks
        row[w.Q], row[w.Q_STRIDE] = slots.q.ctypes.data, slots.q.strides[0]
        row[w.K], row[w.V] = slots.k.ctypes.data, slots.v.ctypes.data
        row[w.KV_STRIDE] = slots.k.strides[0]
        row[w.OUT] = slots.out.ctypes.data
        row[w.LSE], row[w.LSE_STRIDE] = slots.lse.ctypes.data, slots.lse.strides[0]
        row[w.TABLES] = slots.block_tables.ctypes.data
        # Partial results are nobody else's business; most of them are never touched.
        stride = max_parts * _partial_bytes(model)
        partials = SharedMemory.create("omniserve-partials", len(slots.q) * stride)
        self._memories.append(partials)
        row[w.PARTIALS] = partials.address
        row[w.PARTIALS_STRIDE] = stride

    def _fill_layers(self, model: HostModel, pool_address: int) -> None:
        layout = model.pool.layout
        self._layers = np.tile(_template(model), (layout.num_layers, 1))
        self._sinks = None if model.sinks is None else np.array(model.sinks, dtype=np.float32)
        for layer, task in enumerate(self._layers):
            task[kernel_task.CACHE] = pool_address + layer * layout.layer_bytes
            task[kernel_task.WINDOW] = model.window(layer)
            if layout.has_scales:
                task[kernel_task.SCALES] = task[kernel_task.CACHE] + layout.scales_offset
            if self._sinks is not None:
                task[kernel_task.SINKS] = self._sinks[layer].ctypes.data
        self.row[w.LAYERS] = self._layers.ctypes.data
        self.row[w.NUM_LAYERS] = layout.num_layers


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
