"""How soon tenants hear that they were refused."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from math import inf

AT_ONCE_PER_S = 20.0
"""Refusals of one tenant that are told at once; as many as in a second may come together."""
MOST_S = 1.0
"""So long one waits at most."""


class RefusalPace:
    """Slows down a tenant that is refused, asks again, is refused again, and so on without end.

    A refused call costs the front nearly as much as one that is let in, and a client that waits
    for an answer before it asks again can be made to wait. One that does not wait gains nothing:
    `max_held` of a tenant's refusals wait at the same time, all others are told at once.
    """

    def __init__(self, max_held: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Times are on a clock that does not go back."""
        self._max_held = max_held
        self._clock = clock
        self._due_s: dict[str, float] = {}
        """When the next refusal of a tenant would be on time."""
        self._num_held: Counter[str] = Counter()

    def delay_s(self, tenant: str) -> float:
        """A refusal came: what it should wait for."""
        now_s = self._clock()
        # What was not used in the last second is there; before that it is lost.
        due_s = max(self._due_s.get(tenant, -inf), now_s - MOST_S) + 1 / AT_ONCE_PER_S
        delay_s = min(MOST_S, max(0.0, due_s - now_s))
        self._due_s[tenant] = min(due_s, now_s + MOST_S)
        return delay_s

    async def hold(self, tenant: str, until_s: float | None = None) -> None:
        """Returns when the tenant may hear of a refusal that just came, at `until_s` at latest."""
        delay_s = self.delay_s(tenant)
        if until_s is not None:
            delay_s = min(delay_s, until_s - self._clock())
        if delay_s <= 0 or self._num_held[tenant] >= self._max_held:
            return
        self._num_held[tenant] += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._num_held[tenant] -= 1
