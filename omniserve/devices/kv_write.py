"""Writing new keys and values into the paged cache."""

import numpy as np
import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBatch
from omniserve.devices.pinned import to_device


class KvWriter:
    """Scatters k, v rows to their blocks; the indices are made once a step."""

    def __init__(self, kv_cache: Tensor) -> None:
        num_layers, _, _, self._num_kv_heads, self._block_size, head_dim = kv_cache.shape
        self._rows = kv_cache.view(num_layers, -1, head_dim)
        self._device = kv_cache.device
        self._heads = torch.arange(self._num_kv_heads, device=self._device)

    def plan(self, batch: AttentionBatch) -> tuple[Tensor, Tensor]:
        """Row indices of k and of v in the cache seen as [rows, head_dim]."""
        blocks = to_device(batch.row_block_ids.astype(np.int64), self._device)
        offsets = to_device(batch.row_offsets.astype(np.int64), self._device)
        pages = (blocks[:, None] * (2 * self._num_kv_heads) + self._heads) * self._block_size
        k_rows = (pages + offsets[:, None]).flatten()
        return k_rows, k_rows + self._num_kv_heads * self._block_size

    def run(self, plan: tuple[Tensor, Tensor], layer: int, k: Tensor, v: Tensor) -> None:
        rows = self._rows[layer]
        rows.index_copy_(0, plan[0], k.reshape(-1, k.shape[-1]))
        rows.index_copy_(0, plan[1], v.reshape(-1, v.shape[-1]))
