"""Block tables as ragged pages: the form in which FlashInfer takes them."""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from omniserve.devices.attention import AttentionBatch


class PageTable(NamedTuple):
    """Three int32 tensors in host memory; decodes come first, then chunks."""

    offsets: Tensor
    """[sequences + 1] where each sequence's pages begin."""
    pages: Tensor
    """[all pages] block ids."""
    last_lens: Tensor
    """[sequences] tokens in the last page of each."""

    @classmethod
    def of(cls, batch: AttentionBatch, block_size: int) -> Self:
        chunk_lens = [chunk.context_len for chunk in batch.chunks]
        context_lens = np.append(batch.decode_context_lens, np.asarray(chunk_lens, dtype=np.int32))
        num_pages = -(-context_lens // block_size)
        tables = batch.decode_block_tables
        decode_pages = tables[np.arange(tables.shape[1]) < num_pages[: len(tables), None]]
        arrays = (
            np.append(0, np.cumsum(num_pages)),
            np.concatenate([decode_pages, *(chunk.block_ids for chunk in batch.chunks)]),
            context_lens - (num_pages - 1) * block_size,
        )
        return cls(*(torch.from_numpy(array.astype(np.int32)) for array in arrays))
