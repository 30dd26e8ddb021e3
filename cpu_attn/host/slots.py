"""The memory that parent and child share beside the pools: the ring, and request slots by model."""

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
_CELLS_PER_SLOT = 8
"""Room for tasks that overtake a long one, or are called back and published again, before the ring
has to wait for it."""


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
class RingMemory:
    """Control block and ring, as this process sees them; one for all models."""

    memory: SharedMemory
    num_cells: int

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
    def create(cls, num_slots: int) -> "RingMemory":
        """New memory for models of so many slots each; zeros."""
        num_cells = _num_cells(num_slots)
        return cls(SharedMemory.create("omniserve-ring", _ring_bytes(num_cells)), num_cells)

    @classmethod
    def attach(cls, fd: int, num_slots: int) -> "RingMemory":
        """The memory that another process made for as many slots; takes `fd` over."""
        num_cells = _num_cells(num_slots)
        return cls(SharedMemory.attach(fd, _ring_bytes(num_cells)), num_cells)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Memory of one model's slots, mapped into this process."""

    memory: SharedMemory
    slots: SlotArrays

    @classmethod
    def create(cls, model: HostModel, num_slots: int) -> "ModelMemory":
        """New memory: block tables of NO_BLOCK, else zeros whose pages exist once touched.

        Raises OSError where the machine cannot map so much.
        """
        num_bytes = _places(model, num_slots)[1]
        created = cls._view(SharedMemory.create("omniserve-slots", num_bytes), model, num_slots)
        created.slots.block_tables[:] = NO_BLOCK
        return created

    @classmethod
    def attach(cls, fd: int, model: HostModel, num_slots: int) -> "ModelMemory":
        """The memory that another process made for the same model and slots; takes `fd` over."""
        num_bytes = _places(model, num_slots)[1]
        return cls._view(SharedMemory.attach(fd, num_bytes), model, num_slots)

    @classmethod
    def _view(cls, memory: SharedMemory, model: HostModel, num_slots: int) -> "ModelMemory":
        places, _ = _places(model, num_slots)
        arrays = (memory.array(dtype, shape, offset_bytes=at) for at, dtype, shape in places)
        return cls(memory, SlotArrays(*arrays))


def _num_cells(num_slots: int) -> int:
    return 1 << (_CELLS_PER_SLOT * num_slots - 1).bit_length()


def _ring_bytes(num_cells: int) -> int:
    return _aligned(CONTROL_BYTES + num_cells * CELL_BYTES)


def _places(model: HostModel, num_slots: int) -> tuple[list[tuple[int, Any, tuple[int, ...]]], int]:
    """Offset, dtype and shape of each of SlotArrays; bytes of all."""
    places = []
    num_bytes = 0
    for dtype, row in _rows(model):
        shape = (num_slots, *row)
        places.append((num_bytes, dtype, shape))
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        num_bytes = _aligned(num_bytes + size)
    return places, num_bytes


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
