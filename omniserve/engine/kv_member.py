"""A model among those that share KV memory."""

from collections.abc import Sequence
from math import inf
from typing import Protocol

from omniserve.engine.kv_moves import KvMoveBook
from scheduler.kv_memory import KvDemand


class KvBooks(Protocol):
    """What one model's scheduler holds and lacks; `KvMemory` says it of the device, `HostKvMemory`
    of the host."""

    @property
    def blocks_per_extent(self) -> int: ...

    @property
    def num_granted(self) -> int: ...

    @property
    def is_urgent_work_short(self) -> bool: ...

    @property
    def is_urgent_work_stuck(self) -> bool: ...

    @property
    def is_patient_work_short(self) -> bool: ...

    @property
    def is_in_use(self) -> bool: ...

    def demand(self) -> KvDemand: ...

    def grant(self, num_extents: int) -> list[int]: ...

    def withdraw(self, num_extents: int) -> list[int]: ...

    def note_spare(self, num_blocks: int) -> None: ...


class KvHolder(Protocol):
    """A model, as far as it holds KV memory."""

    @property
    def memory(self) -> KvBooks: ...

    def give_way(self, num_extents: int) -> None:
        """Lets requests let go of so many extents, now or soon; 0: of no more than they did."""
        ...

    def reserve_extents(self, extents: Sequence[int]) -> None:
        """Takes them from `memory` again where the device has none for them."""
        ...

    def give_back_extents(self, extents: Sequence[int]) -> None: ...


class KvMember:
    """What it has, and what is known of its use of it."""

    def __init__(self, holder: KvHolder, block_bytes: int, most_bytes: int, now_s: float) -> None:
        self.holder = holder
        self.block_bytes = block_bytes
        self.most_bytes = most_bytes
        self.last_use_s = now_s
        self.short_since_s = inf
        self.book = KvMoveBook()
        self.is_yielding = False

    @property
    def unit_bytes(self) -> int:
        return self.block_bytes * self.holder.memory.blocks_per_extent

    @property
    def granted_bytes(self) -> int:
        return self.holder.memory.num_granted * self.block_bytes
