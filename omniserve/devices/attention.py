"""What an attention backend is given and what it gives back: plan once a step, run once a layer."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, more than one: part or all of a prefill."""

    first_row: int
    num_tokens: int
    start: int
    """Position of the first token; everything before it is in the cache."""
    block_ids: IntArray
    """[num_blocks] covering positions 0 .. start + num_tokens - 1."""

    @property
    def context_len(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Rows of one step: decode rows come first, then the chunks in order."""

    decode_block_tables: IntArray
    """[num_decodes, max_blocks]; entries past a row's context are any block, and what is there may
    not be read: there may be no memory behind it."""
    decode_context_lens: IntArray
    """[num_decodes], the new token included."""
    chunks: tuple[Chunk, ...]
    row_block_ids: IntArray
    """[rows] block that takes each row's k and v."""
    row_offsets: IntArray
    """[rows] position inside that block."""

    @property
    def num_decodes(self) -> int:
        return len(self.decode_context_lens)

    def without_decodes(self) -> "AttentionBatch":
        """The chunks alone, their rows counted from 0."""
        skipped = self.num_decodes
        return AttentionBatch(
            decode_block_tables=self.decode_block_tables[:0],
            decode_context_lens=self.decode_context_lens[:0],
            chunks=tuple(replace(c, first_row=c.first_row - skipped) for c in self.chunks),
            row_block_ids=self.row_block_ids[skipped:],
            row_offsets=self.row_offsets[skipped:],
        )

    def padded(self, num_rows: int, scratch_block: int) -> "AttentionBatch":
        """Decodes alone, made `num_rows`: the others are first tokens in a block nobody reads."""
        assert not self.chunks
        more = num_rows - self.num_decodes
        return AttentionBatch(
            decode_block_tables=np.pad(
                self.decode_block_tables, ((0, more), (0, 0)), constant_values=scratch_block
            ),
            decode_context_lens=np.pad(self.decode_context_lens, (0, more), constant_values=1),
            chunks=(),
            row_block_ids=np.pad(self.row_block_ids, (0, more), constant_values=scratch_block),
            row_offsets=np.pad(self.row_offsets, (0, more)),
        )

    @classmethod
    def empty(cls, table_width: int) -> "AttentionBatch":
        """No rows; block tables would have `table_width` entries."""
        none = np.empty(0, dtype=np.int32)
        return cls(np.empty((0, table_width), dtype=np.int32), none, (), none, none)


class AttentionBackend(Protocol):
    """Paged attention over `kv_cache` [layers, blocks, 2, num_kv_heads, block_size, head_dim].

    The 2 is keys, values. A window w lets position i see i - w + 1 .. i.
    """

    def plan(self, batch: AttentionBatch) -> Any:
        """Work that is the same in every layer; what it returns is good for one step."""

    def run(self, plan: Any, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Writes k, v [rows, num_kv_heads, head_dim] to the cache, then attends.

        q is [rows, num_heads, head_dim]; the result is [rows, num_heads * head_dim].
        """


class StaticDecodes(Protocol):
    """Attention of a fixed number of decode rows, whose plan stays where it is in memory.

    So a captured graph with `run` in it can be replayed for another step.
    """

    def fill(self, batch: AttentionBatch) -> None:
        """Plans decodes alone, as many rows as there are; what was planned before is gone."""

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As AttentionBackend's, by the plan that is there when the device gets to it."""


@runtime_checkable
class CapturableAttention(AttentionBackend, Protocol):
    """A backend whose decodes can be part of a captured graph."""

    def context_size(self, batch: AttentionBatch) -> int:
        """What `static_decodes` needs so that a batch of decodes fits; one of few numbers."""

    def static_decodes(self, padding: AttentionBatch, context_size: int) -> StaticDecodes:
        """For batches of as many decodes as `padding` has, and for now filled with it."""
