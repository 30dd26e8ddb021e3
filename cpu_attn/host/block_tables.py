"""The block tables of request slots, as their users set and give them up."""

import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpu_attn.host.settings import HostModel
from cpu_attn.host.slots import NO_BLOCK, SlotArrays


class BlockTables:
    """Entries that nobody set are NO_BLOCK, so a task can never fall upon another's block.

    Of a released slot that is in flight the child may still read the table; it is cleared by the
    first `clear_free` after that.
    """

    def __init__(self) -> None:
        self._num_blocks: dict[int, int] = {}
        self._tables: dict[int, NDArray[np.int32]] = {}
        self._released: set[tuple[int, int]] = set()

    def add_model(self, index: int, model: HostModel, slots: SlotArrays) -> None:
        self._num_blocks[index] = model.pool.num_blocks
        self._tables[index] = slots.block_tables

    def remove_model(self, index: int) -> None:
        """None of its slots is in flight."""
        del self._num_blocks[index], self._tables[index]
        self._released = {entry for entry in self._released if entry[0] != index}

    def set(self, model: int, slot: int, block_ids: ArrayLike, first: int) -> None:
        """See HostAttention.set_block_table; `model` was checked and the slot is not in flight."""
        tables, num_blocks = self._tables[model], self._num_blocks[model]
        ids = np.asarray(block_ids)
        if ids.dtype.kind not in "iu" and ids.size:
            raise TypeError(f"block_ids: {ids.dtype}, integers are needed")
        if ids.ndim != 1:
            raise ValueError(f"block_ids: shape {ids.shape}, a row of them is needed")
        if ids.size and not (ids.min() >= 0 and ids.max() < num_blocks):
            raise ValueError(
                f"block_ids: {ids.min()}..{ids.max()}, 0..{num_blocks - 1} are allowed"
            )
        first = operator.index(first)
        stop = first + len(ids)
        if first < 0 or stop > tables.shape[1]:
            raise ValueError(f"block_ids: entries {first}..{stop - 1} of {tables.shape[1]}")
        tables[slot, first:stop] = ids
        tables[slot, stop:] = NO_BLOCK

    def release(self, model: int, slots: ArrayLike) -> None:
        """The slots were checked; their tables are cleared by `clear_free`."""
        self._released.update((model, slot) for slot in np.ravel(slots).tolist())

    def clear_free(self, in_flight: Callable[[int], NDArray[np.bool_]]) -> None:
        """Clears the tables of released slots that are not in flight: [num_slots] of a model."""
        if not self._released:
            return
        busy = {model: in_flight(model) for model in {model for model, _ in self._released}}
        free = [(model, slot) for model, slot in self._released if not busy[model][slot]]
        for model, slot in free:
            self._tables[model][slot] = NO_BLOCK
        self._released.difference_update(free)
