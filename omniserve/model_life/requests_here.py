"""Requests that are here, by the model that serves them, for whoever waits until they are gone."""

import asyncio
import time
from collections.abc import Callable, Mapping


class ModelLease:
    """One request's claim on its model, from the moment it has found it until it has ended."""

    def __init__(self, model: str, close: Callable[["ModelLease"], None]) -> None:
        self.model = model
        self.tier = ""
        """The one that it was sent for, once that is known."""
        self._close = close
        self._fail: Callable[[Exception], None] | None = None
        self._error: Exception | None = None

    def on_end(self, fail: Callable[[Exception], None]) -> None:
        """`fail` is how the request is ended from now on; it is told at once if it was ended."""
        self._fail = fail
        if self._error is not None:
            fail(self._error)

    def end(self, error: Exception) -> None:
        """The model goes: the request is to end with this."""
        self._error = error
        if self._fail is not None:
            self._fail(error)

    def close(self) -> None:
        """The request has ended."""
        self._close(self)


class ModelRequests:
    """Of one front. Used from its event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s: dict[str, dict[str, float]] = {}
        self._leases: dict[str, set[ModelLease]] = {}
        self._changed: dict[str, asyncio.Event] = {}

    def enter(self, model: str) -> ModelLease:
        """A request of this model is here; `close` of what is returned is owed."""
        lease = ModelLease(model, self._leave)
        self._leases.setdefault(model, set()).add(lease)
        return lease

    def count(self, model: str) -> int:
        return len(self._leases.get(model, ()))

    def last_uses(self, model: str) -> Mapping[str, float]:
        """By tier: when its last request for the model ended, as far as that is remembered."""
        return self._last_s.get(model, {})

    def forget_uses(self, model: str) -> None:
        """What it was used for before says nothing any more."""
        self._last_s.pop(model, None)

    async def wait_none(self, model: str, timeout_s: float) -> None:
        """Returns once none of the model is here, or after so long."""
        if not self.count(model):
            return
        is_empty = self._changed.setdefault(model, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await is_empty.wait()
        except TimeoutError:
            return
        finally:
            self._changed.pop(model, None)

    def end(self, model: str, error: Exception) -> int:
        """Ends all that are here of the model, and says how many they were."""
        leases = tuple(self._leases.get(model, ()))
        for lease in leases:
            lease.end(error)
        return len(leases)

    def _leave(self, lease: ModelLease) -> None:
        if lease.tier:
            self._last_s.setdefault(lease.model, {})[lease.tier] = self._clock()
        here = self._leases.get(lease.model, set())
        here.discard(lease)
        if here:
            return
        self._leases.pop(lease.model, None)
        if lease.model in self._changed:
            self._changed[lease.model].set()
