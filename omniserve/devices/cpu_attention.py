"""Paged attention on a CPU device: decode rows by our kernel, prefill chunks by torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn import paged_decode
from cpu_attn.element import Element
from cpu_attn.paged_decode import DecodeShape, decode_kernel, new_task
from omniserve.devices.attention import AttentionBatch
from omniserve.devices.chunk_attention import Window
from omniserve.devices.openmp_team import OpenMpTeam
from omniserve.devices.sdpa import SdpaAttention, SdpaPlan

_ELEMENTS = {
    torch.float32: Element.FLOAT32,
    torch.float16: Element.FLOAT16,
    torch.bfloat16: Element.BFLOAT16,
}


def decode_shape(kv_cache: Tensor, num_heads: int) -> DecodeShape | None:
    """The kernel for a cache of this shape and dtype, or None where there is none."""
    _, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    shape = DecodeShape(_ELEMENTS[kv_cache.dtype], num_heads // num_kv_heads, head_dim, block_size)
    try:
        shape.check()
    except ValueError:
        return None
    return shape


@dataclass(frozen=True, slots=True)
class CpuPlan:
    num_decodes: int
    block_tables: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    """Kept alive here: tasks hold their addresses."""
    chunks: SdpaPlan | None


class CpuAttention:
    """Decode reads each KV block once, where it lies; nothing is gathered or padded."""

    def __init__(self, kv_cache: Tensor, windows: Sequence[Window], shape: DecodeShape) -> None:
        self._kernel = decode_kernel(shape)
        self._team = OpenMpTeam()
        self._chunks = SdpaAttention(kv_cache, windows)
        self._tasks = [new_task(shape.head_dim**-0.5, window) for window in windows]
        for task, layer in zip(self._tasks, kv_cache, strict=True):
            task[paged_decode.NUM_KV_HEADS] = kv_cache.shape[3]
            task[paged_decode.CACHE] = layer.data_ptr()

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        return CpuPlan(
            batch.num_decodes,
            np.ascontiguousarray(batch.decode_block_tables),
            batch.decode_context_lens,
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

    def _decode(
        self, plan: CpuPlan, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        assert all(x.stride(1) == x.shape[2] and x.stride(2) == 1 for x in (q, k, v))
        task = self._tasks[layer]
        task[paged_decode.NEXT_ITEM] = 0
        task[paged_decode.NUM_SEQUENCES] = plan.num_decodes
        for field, tensor in (
            (paged_decode.Q, q),
            (paged_decode.K, k),
            (paged_decode.V, v),
            (paged_decode.OUT, out),
        ):
            task[field] = tensor.data_ptr()
            task[field + 1] = tensor.stride(0)
        task[paged_decode.TABLES] = plan.block_tables.ctypes.data
        task[paged_decode.TABLE_STRIDE] = plan.block_tables.shape[1]
        task[paged_decode.CONTEXT_LENS] = plan.context_lens.ctypes.data
        self._team.run(self._kernel.address, task.ctypes.data)
