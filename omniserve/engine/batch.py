"""From a step plan to the arrays that the executor runs on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omniserve.devices.attention import AttentionBatch, Chunk
from scheduler.plan import PlannedRows, StepPlan


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Rows of one step; decode rows first, then chunks, each in the plan's order."""

    token_ids: NDArray[np.int64]
    """[rows]; where a token is still being sampled by an earlier step, 0."""
    positions: NDArray[np.int64]
    pending_rows: NDArray[np.int64]
    """Rows whose token an earlier step in flight samples."""
    pending_slots: NDArray[np.int64]
    """Slot of each pending row."""
    attention: AttentionBatch
    sampling_rows: NDArray[np.int64]
    """Rows whose residual goes to the output head."""
    sampling_groups: tuple[PlannedRows, ...]
    """The planned rows that each sampling row belongs to."""


class BlockTables:
    """Block ids of every slot, kept from step to step: a plan brings only what is new."""

    def __init__(self, num_slots: int, max_blocks: int) -> None:
        self._ids = np.zeros((num_slots, max_blocks), dtype=np.int32)

    def update(self, plan: StepPlan) -> None:
        for rows in plan.rows:
            if rows.new_block_ids:
                first = rows.first_new_block
                self._ids[rows.slot, first : first + len(rows.new_block_ids)] = rows.new_block_ids

    def set(self, slot: int, block_ids: Sequence[int]) -> None:
        self._ids[slot, : len(block_ids)] = block_ids

    def of(self, slots: NDArray[np.int64] | int) -> NDArray[np.int32]:
        return self._ids[slots]


def build_batch(plan: StepPlan, tables: BlockTables, block_size: int) -> StepBatch:
    """Arrays of a plan whose blocks `tables` already knows."""
    decodes = [rows for rows in plan.rows if rows.num_tokens == 1]
    groups = decodes + [rows for rows in plan.rows if rows.num_tokens > 1]
    num_rows = np.array([rows.num_tokens for rows in groups], dtype=np.int64)
    last_rows = np.cumsum(num_rows) - 1
    starts = np.array([rows.start for rows in groups], dtype=np.int64)
    slots = np.array([rows.slot for rows in groups], dtype=np.int64)

    token_ids: list[int] = []
    for rows in groups:
        token_ids.extend(rows.token_ids or (0,))
    pending = [index for index, rows in enumerate(decodes) if rows.token_ids is None]
    # Position of a row: its group's start plus its distance from the group's first row.
    positions = np.arange(len(token_ids)) + np.repeat(starts - (last_rows - num_rows + 1), num_rows)
    group_of_row = np.repeat(np.arange(len(groups)), num_rows)
    sampling = [index for index, rows in enumerate(groups) if rows.samples]
    all_tables = tables.of(slots)
    return StepBatch(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=positions,
        pending_rows=np.array(pending, dtype=np.int64),
        pending_slots=slots[pending],
        attention=AttentionBatch(
            decode_block_tables=all_tables[: len(decodes)],
            decode_context_lens=(starts[: len(decodes)] + 1).astype(np.int32),
            chunks=_chunks(
                groups[len(decodes) :], all_tables[len(decodes) :], len(decodes), block_size
            ),
            row_block_ids=all_tables[group_of_row, positions // block_size],
            row_offsets=(positions % block_size).astype(np.int32),
        ),
        sampling_rows=last_rows[sampling],
        sampling_groups=tuple(groups[index] for index in sampling),
    )


def _chunks(
    groups: list[PlannedRows], tables: NDArray[np.int32], first_row: int, block_size: int
) -> tuple[Chunk, ...]:
    chunks = []
    for rows, table in zip(groups, tables, strict=True):
        num_blocks = -(-(rows.start + rows.num_tokens) // block_size)
        chunks.append(Chunk(first_row, rows.num_tokens, rows.start, table[:num_blocks]))
        first_row += rows.num_tokens
    return tuple(chunks)
