"""Rows of the executor's per-request tables."""

from collections.abc import Collection

from scheduler.integrity import require_equal


class SlotPool:
    """Slots 0..num_slots-1, each lent to at most one request."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """Lend a slot; there must be a free one."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        assert 0 <= slot < self.num_slots and slot not in self._free, f"slot {slot} was not lent"
        self._free.append(slot)

    def check_integrity(self, held: Collection[int]) -> None:
        """Raise IntegrityError unless `held` and the free slots are every slot once."""
        require_equal("slots", sorted([*held, *self._free]), list(range(self.num_slots)))
