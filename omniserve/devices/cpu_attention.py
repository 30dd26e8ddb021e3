"""Paged attention on a CPU device: decode rows by our kernel, prefill chunks by torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn import kernel_task
from cpu_attn.kernel_variant import KernelVariant
from cpu_attn.kv_layout import KvLayout
from cpu_attn.paged_kernel import attention_kernel
from cpu_attn.work_items import WorkPlan, plan_items
from omniserve.devices.attention import AttentionBatch
from omniserve.devices.chunk_attention import Window
from omniserve.devices.elements import ELEMENTS
from omniserve.devices.openmp_team import OpenMpTeam, TeamKernel
from omniserve.devices.sdpa import SdpaAttention, SdpaPlan


def layout_of(kv_cache: Tensor) -> KvLayout | None:
    """Of one layer of a cache, or None where no kernel can read it."""
    _, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    try:
        return KvLayout(ELEMENTS[kv_cache.dtype], 1, num_kv_heads, head_dim, block_size)
    except ValueError:
        return None


class _DecodeWork:
    """The decode rows of one step as layers with the same window see them."""

    def __init__(self, batch: AttentionBatch, task: NDArray[np.int64], work: WorkPlan) -> None:
        # The task holds addresses only: what is behind them is kept alive here.
        self._tables = np.ascontiguousarray(batch.decode_block_tables)
        self._context_lens = batch.decode_context_lens
        self._work = work
        self._partials = np.empty(
            work.num_parts * int(task[kernel_task.PARTIAL_STRIDE]) // 4, dtype=np.float32
        )
        self._parts_left = work.parts_per_group.copy()
        self._task = task
        self.task_address: int = task.ctypes.data
        self.fields = task.data
        self.num_results = work.num_results
        fields = self.fields
        fields[kernel_task.NUM_ITEMS] = work.num_items
        fields[kernel_task.ITEMS] = work.items.ctypes.data
        fields[kernel_task.TABLES] = self._tables.ctypes.data
        fields[kernel_task.TABLE_STRIDE] = self._tables.strides[0]
        fields[kernel_task.CONTEXT_LENS] = self._context_lens.ctypes.data
        fields[kernel_task.PARTIALS] = self._partials.ctypes.data
        fields[kernel_task.PARTS_LEFT] = self._parts_left.ctypes.data

    @property
    def is_one_item(self) -> bool:
        return self._work.num_items == 1


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """One step: its decode rows, once for each different window, and its chunks."""

    num_decodes: int
    works: dict[Window, _DecodeWork]
    chunks: SdpaPlan | None


class CpuAttention:
    """Decode reads each KV block once, where it lies; nothing is gathered or padded."""

    def __init__(
        self, kv_cache: Tensor, num_heads: int, windows: Sequence[Window], layout: KvLayout
    ) -> None:
        self._layout = layout
        self._windows = tuple(windows)
        self._chunks = SdpaAttention(kv_cache, windows)
        self._kernel = TeamKernel(
            OpenMpTeam(),
            attention_kernel(KernelVariant(layout.element, layout.element, layout.head_dim)),
        )
        self._element_bytes = layout.element.num_bytes
        self._layer_addresses = [layer.data_ptr() for layer in kv_cache]
        self._task = kernel_task.new_task(
            num_kv_heads=layout.num_kv_heads,
            group_size=num_heads // layout.num_kv_heads,
            q_len=1,
            block_size=layout.block_size,
            scale=layout.head_dim**-0.5,
        )
        self._task[kernel_task.BLOCK_STRIDE] = layout.layer_bytes
        self._task[kernel_task.PARTIAL_STRIDE] = kernel_task.partial_stride(
            num_heads, 1, layout.head_dim
        )

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        works = {}
        if batch.num_decodes:
            works = {window: self._plan_decodes(batch, window) for window in set(self._windows)}
        chunks = self._chunks.plan(batch.without_decodes()) if batch.chunks else None
        return CpuPlan(batch.num_decodes, works, chunks)

    def _plan_decodes(self, batch: AttentionBatch, window: Window) -> _DecodeWork:
        work = plan_items(
            batch.decode_context_lens,
            num_kv_heads=self._layout.num_kv_heads,
            window=window,
            num_threads=torch.get_num_threads(),
        )
        task = self._task.copy()
        if window is not None:
            task[kernel_task.WINDOW] = window
        return _DecodeWork(batch, task, work)

    def run(self, plan: CpuPlan, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        if plan.num_decodes:
            self._decode(plan.works[self._windows[layer]], layer, q, k, v, out)
        if plan.chunks is not None:
            rows = slice(plan.num_decodes, None)
            out[rows] = self._chunks.run(plan.chunks, layer, q[rows], k[rows], v[rows])
        return out

    def _decode(
        self, work: _DecodeWork, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        # Python per field, not per row: plain integers, set where the kernel reads them.
        fields, size = work.fields, self._element_bytes
        fields[kernel_task.NEXT_ITEM] = 0
        fields[kernel_task.NUM_FINISHED] = 0
        fields[kernel_task.CACHE] = self._layer_addresses[layer]
        fields[kernel_task.Q] = q.data_ptr()
        fields[kernel_task.Q_SEQUENCE_STRIDE] = q.stride(0) * size
        fields[kernel_task.K] = k.data_ptr()
        fields[kernel_task.K_SEQUENCE_STRIDE] = k.stride(0) * size
        fields[kernel_task.V] = v.data_ptr()
        fields[kernel_task.V_SEQUENCE_STRIDE] = v.stride(0) * size
        fields[kernel_task.OUT] = out.data_ptr()
        fields[kernel_task.OUT_SEQUENCE_STRIDE] = out.stride(0) * size
        self._kernel.run(work.task_address, alone=work.is_one_item)
        num_finished = fields[kernel_task.NUM_FINISHED]
        if num_finished != work.num_results:
            # A compiled callback cannot raise; lack of memory for its scratch is one case.
            raise RuntimeError(f"{num_finished} of {work.num_results} results: a kernel gave up")
