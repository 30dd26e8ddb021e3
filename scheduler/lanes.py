"""Places of offloaded requests in the engine's arrays."""

from collections.abc import Collection

from scheduler.integrity import require_equal


class LanePool:
    """Lanes 0..num_lanes-1, each lent to one request, or stopping, or free.

    The engine may still work on a lane whose request has left it, so the lane and its blocks are
    free only when the engine says that it is quiet.
    """

    def __init__(self, num_lanes: int) -> None:
        self._num_lanes = num_lanes
        self._free = list(range(num_lanes - 1, -1, -1))
        self._stopping: dict[int, list[int]] = {}
        """Host blocks by lane."""
        self._released: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_in_use(self) -> int:
        """Lanes lent to requests, and those that are stopping."""
        return self._num_lanes - len(self._free)

    @property
    def stopping_tables(self) -> Collection[list[int]]:
        """Blocks that are held for lanes that are not quiet yet."""
        return self._stopping.values()

    def take(self) -> int:
        """Lend a lane; there must be a free one."""
        return self._free.pop()

    def release(self, lane: int, block_ids: list[int]) -> None:
        """The request has left the lane; `block_ids` stay held for it until it is quiet."""
        assert lane not in self._stopping and lane not in self._free, f"lane {lane} was not lent"
        self._stopping[lane] = block_ids
        self._released.append(lane)

    def take_released(self) -> tuple[int, ...]:
        """Lanes released since the last call."""
        released = tuple(self._released)
        self._released.clear()
        return released

    def quieten(self, lane: int) -> list[int]:
        """Free a stopping lane; returns the blocks that were held for it."""
        assert lane in self._stopping, f"lane {lane} was not released"
        block_ids = self._stopping.pop(lane)
        self._free.append(lane)
        return block_ids

    def check_integrity(self, lent: Collection[int]) -> None:
        """Raise IntegrityError unless `lent`, stopping and free lanes are every lane once."""
        places = sorted([*lent, *self._stopping, *self._free])
        require_equal("lanes", places, list(range(self._num_lanes)))
        unknown = set(self._released) - self._stopping.keys()
        require_equal("lanes released but not stopping", unknown, set())
