"""The memory that parent and child share beside the pools: control block, ring, request slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_attn.host.descriptor import CELL_BYTES, CONTROL_BYTES
from cpu_attn.host.settings import HostModel
from cpu_attn.host.shared_memory import SharedMemory

NO_BLOCK = -1
"""An entry of a block table that was not set; a task that needs it is refused."""
_ALIGNMENT = 4096
_CELLS_PER_SLOT = 4
"""Room for tasks that overtake a long one, before the ring has to wait for it."""


@dataclass(frozen=True, slots=True)
class SlotArrays:
    """A model's payloads and results, one row a slot. bfloat16 is uint16.

    A row may be written while no task of its slot is in flight. A task of q_len query tokens uses
    the first q_len tokens of a row.
    """

    q: NDArray[Any]
    """[num_slots, max_q_len, num_heads, head_dim]"""
    k: NDArray[Any]
    """[num_slots, max_q_len, num_kv_heads, head_dim]; appended at the end of the context."""
    v: NDArray[Any]
    out: NDArray[Any]
    """[num_slots, max_q_len, num_heads, head_dim]"""
    lse: NDArray[np.float32]
    """[num_slots, max_q_len, num_heads]; natural logarithm."""
    block_tables: NDArray[np.int32]
    """[num_slots, max_blocks]; ids in the model's pool, NO_BLOCK where nobody set one.

    `set_block_table` checks what it writes.
    """


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Views of the shared memory in this process."""

    memory: SharedMemory
    num_cells: int
    slots: tuple[SlotArrays, ...]
    """One a model."""

    @property
    def control(self) -> int:
        """Address of the control block."""
        return self.memory.address

    @property
    def cells(self) -> int:
        """Address of cell 0."""
        return self.memory.address + CONTROL_BYTES

    @property
    def mask(self) -> int:
        return self.num_cells - 1

    @classmethod
    def create(cls, models: Sequence[HostModel], num_slots: int) -> "HostMemory":
        """New memory: block tables of NO_BLOCK, else zeros whose pages exist once touched."""
        num_bytes = _Places(models, num_slots).num_bytes
        created = cls._view(SharedMemory.create("omniserve-host", num_bytes), models, num_slots)
        for arrays in created.slots:
            arrays.block_tables[:] = NO_BLOCK
        return created

    @classmethod
    def attach(cls, fd: int, models: Sequence[HostModel], num_slots: int) -> "HostMemory":
        """The memory that another process made for the same models and slots."""
        num_bytes = _Places(models, num_slots).num_bytes
        return cls._view(SharedMemory.attach(fd, num_bytes), models, num_slots)

    @classmethod
    def _view(
        cls, memory: SharedMemory, models: Sequence[HostModel], num_slots: int
    ) -> "HostMemory":
        places = _Places(models, num_slots)
        slots = tuple(
            SlotArrays(
                *(
                    memory.array(dtype, shape, offset_bytes=offset)
                    for offset, dtype, shape in arrays
                )
            )
            for arrays in places.models
        )
        return cls(memory, places.num_cells, slots)


class _Places:
    """Where each array begins."""

    def __init__(self, models: Sequence[HostModel], num_slots: int) -> None:
        wanted = _CELLS_PER_SLOT * num_slots * len(models)
        self.num_cells = 1 << (wanted - 1).bit_length()
        self.num_bytes = _aligned(CONTROL_BYTES + self.num_cells * CELL_BYTES)
        self.models = [
            [self._place(dtype, (num_slots, *shape)) for dtype, shape in _rows(model)]
            for model in models
        ]

    def _place(self, dtype: Any, shape: tuple[int, ...]) -> tuple[int, Any, tuple[int, ...]]:
        offset = self.num_bytes
        num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self.num_bytes = _aligned(offset + num_bytes)
        return offset, dtype, shape


def _rows(model: HostModel) -> list[tuple[Any, tuple[int, ...]]]:
    """dtype and shape of a slot's row in each of SlotArrays."""
    layout, dtype = model.pool.layout, model.io.dtype
    heads = (model.max_q_len, model.num_heads)
    queries = (*heads, layout.head_dim)
    keys = (model.max_q_len, layout.num_kv_heads, layout.head_dim)
    return [
        (dtype, queries),
        (dtype, keys),
        (dtype, keys),
        (dtype, queries),
        (np.float32, heads),
        (np.int32, (model.max_blocks,)),
    ]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
