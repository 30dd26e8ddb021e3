"""Paged attention on a CPU device: decode rows by our kernel, prefill chunks by torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn import paged_decode
from cpu_attn.paged_decode import DecodeShape, decode_kernel, new_task
from omniserve.devices.attention import AttentionBatch
from omniserve.devices.chunk_attention import Window
from omniserve.devices.elements import ELEMENTS
from omniserve.devices.openmp_team import OpenMpTeam, TeamKernel
from omniserve.devices.sdpa import SdpaAttention, SdpaPlan

_ITEMS_PER_THREAD = 4


def decode_shape(kv_cache: Tensor, num_heads: int) -> DecodeShape | None:
    """The kernel for a cache of this shape and dtype, or None where there is none."""
    _, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    shape = DecodeShape(ELEMENTS[kv_cache.dtype], num_heads // num_kv_heads, head_dim, block_size)
    try:
        shape.check()
    except ValueError:
        return None
    return shape


@dataclass(frozen=True, slots=True)
class CpuPlan:
    num_decodes: int
    heads_per_item: int
    block_tables: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    """Kept alive here: tasks hold their addresses."""
    block_tables_address: int
    context_lens_address: int
    chunks: SdpaPlan | None


class CpuAttention:
    """Decode reads each KV block once, where it lies; nothing is gathered or padded."""

    def __init__(self, kv_cache: Tensor, windows: Sequence[Window], shape: DecodeShape) -> None:
        team = OpenMpTeam()
        callback = decode_kernel(shape)
        self._num_kv_heads = kv_cache.shape[3]
        self._chunks = SdpaAttention(kv_cache, windows)
        self._tasks = [new_task(shape.head_dim**-0.5, window) for window in windows]
        self._fields = [task.data for task in self._tasks]
        self._kernels = [TeamKernel(team, callback, task) for task in self._tasks]
        for task, layer in zip(self._tasks, kv_cache, strict=True):
            task[paged_decode.NUM_KV_HEADS] = self._num_kv_heads
            task[paged_decode.CACHE] = layer.data_ptr()

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        tables = np.ascontiguousarray(batch.decode_block_tables)
        return CpuPlan(
            batch.num_decodes,
            self._heads_per_item(batch.num_decodes),
            tables,
            batch.decode_context_lens,
            tables.ctypes.data,
            batch.decode_context_lens.ctypes.data,
            self._chunks.plan(batch.without_decodes()) if batch.chunks else None,
        )

    def run(self, plan: CpuPlan, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        if plan.num_decodes:
            self._decode(plan, layer, q, k, v, out)
        if plan.chunks is not None:
            rows = slice(plan.num_decodes, None)
            out[rows] = self._chunks.run(plan.chunks, layer, q[rows], k[rows], v[rows])
        return out

    def _heads_per_item(self, num_decodes: int) -> int:
        """Whole sequences where there are enough of them: their pages are long runs of memory."""
        num_items = _ITEMS_PER_THREAD * torch.get_num_threads()
        splits = -(-num_items // max(1, num_decodes))
        return max(1, self._num_kv_heads // splits)

    def _decode(
        self, plan: CpuPlan, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        # Python per field, not per row: plain integers, set where the kernel reads them.
        fields = self._fields[layer]
        fields[paged_decode.NEXT_ITEM] = 0
        fields[paged_decode.NUM_SEQUENCES] = plan.num_decodes
        fields[paged_decode.HEADS_PER_ITEM] = plan.heads_per_item
        fields[paged_decode.Q], fields[paged_decode.Q_STRIDE] = q.data_ptr(), q.stride(0)
        fields[paged_decode.K], fields[paged_decode.K_STRIDE] = k.data_ptr(), k.stride(0)
        fields[paged_decode.V], fields[paged_decode.V_STRIDE] = v.data_ptr(), v.stride(0)
        fields[paged_decode.OUT], fields[paged_decode.OUT_STRIDE] = out.data_ptr(), out.stride(0)
        fields[paged_decode.TABLES] = plan.block_tables_address
        fields[paged_decode.TABLE_STRIDE] = plan.block_tables.shape[1]
        fields[paged_decode.CONTEXT_LENS] = plan.context_lens_address
        self._kernels[layer].run()
