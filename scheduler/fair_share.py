"""What each tenant has been given, so that the next turn is that of who has had the least."""

from collections.abc import Collection, Iterable, Mapping

PROMPT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0
"""What a token counts; an output token takes a row of a step of its own."""
_MOST_REMEMBERED = 1000


class FairShare:
    """Virtual token counters of one service class (Sheng et al., OSDI 2024).

    While two tenants both have requests waiting, what they are given, each divided by its weight,
    differs by no more than the requests that run. A tenant that comes back after a pause begins
    with the least of those that wait, or, if nobody does, with what the one that waited last has
    had: a pause saves nothing up.
    """

    def __init__(self) -> None:
        self._given: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._last_to_leave = ""
        self._num_bearable = _MOST_REMEMBERED
        """Tenants that are remembered before those are forgotten that a join would lift anyway."""

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """From now on, of what is charged; of tenants that are not named it is 1."""
        self._weights = dict(weights)

    def given(self, tenant: str) -> float:
        """Divided by the weight that the tenant had at the time."""
        return self._given.get(tenant, 0.0)

    def charge(self, tenant: str, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Computed for the tenant just now."""
        cost = PROMPT_TOKEN * num_prompt_tokens + OUTPUT_TOKEN * num_output_tokens
        weight = self._weights.get(tenant, 1.0)
        self._given[tenant] = self._given.get(tenant, 0.0) + cost / weight

    def join(self, tenant: str, others: Iterable[str]) -> None:
        """The tenant has requests that wait again; `others` have them too."""
        waiting = {other for other in others if other != tenant}
        least = min(map(self.given, waiting), default=self.given(self._last_to_leave))
        self._given[tenant] = max(self.given(tenant), least)
        if len(self._given) > self._num_bearable:
            self._forget_paused(waiting, least)

    def leave(self, tenant: str) -> None:
        """Nothing of the tenant waits any more."""
        self._last_to_leave = tenant

    def _forget_paused(self, waiting: Collection[str], least: float) -> None:
        self._given = {
            tenant: given
            for tenant, given in self._given.items()
            if given >= least or tenant in waiting
        }
        self._num_bearable = max(_MOST_REMEMBERED, 2 * len(self._given))

    def least(self, tenants: Collection[str]) -> str:
        """Whose turn it is."""
        return min(tenants, key=self.given)
