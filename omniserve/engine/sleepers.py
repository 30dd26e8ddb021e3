"""Models of an engine that fall asleep, or are asleep."""

from omniserve.engine.kv_arbiter import KvArbiter


class Sleepers:
    """Tells models that leave for a while from those that leave for good. Used between steps."""

    def __init__(self, kv_arbiter: KvArbiter) -> None:
        self._kv_arbiter = kv_arbiter
        self._falling: set[str] = set()

    def begin(self, model: str) -> None:
        """It is about to leave, and will come back."""
        self._falling.add(model)

    def forget(self, model: str) -> None:
        """It is not expected back; where it is still leaving, it goes for good."""
        self._falling.discard(model)
        if self._kv_arbiter.is_resting(model):
            self._kv_arbiter.remove(model)

    def note_left(self, model: str) -> None:
        """Its memory is given back, or it could not be loaded."""
        if model in self._falling:
            self._falling.remove(model)
            self._kv_arbiter.rest(model)
        else:
            self._kv_arbiter.remove(model)
