"""So many at the same time."""

from omniserve.queue_movement import QueueMovement, retry_after_s


class Places:
    """Those that are taken, and how fast they have become free of late."""

    def __init__(self, most: int | None) -> None:
        """None: any number."""
        self.most = most
        self.num_taken = 0
        self._num_freed = 0
        self._movement = QueueMovement()

    def wait_s(self, num_wanted: int, now_s: float) -> float:
        """Until so many are free, if it goes on as in the last seconds; 0 where they are."""
        self._movement.note(now_s, self._num_freed)
        if self.most is None or self.num_taken + num_wanted <= self.most:
            return 0.0
        num_missing = self.num_taken + num_wanted - self.most
        return retry_after_s(num_missing * self._movement.next_place_s(now_s, self._num_freed))

    def take(self, num_wanted: int) -> None:
        """Whether they are free is the caller's to know."""
        self.num_taken += num_wanted

    def free(self, num_taken: int) -> None:
        self.num_taken -= num_taken
        self._num_freed += num_taken
