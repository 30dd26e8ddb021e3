"""What each tenant has been given, so that the next turn is that of who has had the least."""

from collections.abc import Collection, Iterable

PROMPT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0
"""What a token counts; an output token takes a row of a step of its own."""


class FairShare:
    """Virtual token counters of one service class (Sheng et al., OSDI 2024).

    While two tenants both have requests waiting, what they are given differs by no more than the
    requests that run. A tenant that comes back after a pause begins with the least of those that
    are there: a pause saves nothing up.
    """

    def __init__(self) -> None:
        self._given: dict[str, float] = {}

    def given(self, tenant: str) -> float:
        return self._given.get(tenant, 0.0)

    def charge(
        self, tenant: str, *, num_prompt_tokens: int = 0, num_output_tokens: int = 0
    ) -> None:
        """Computed for the tenant just now."""
        cost = PROMPT_TOKEN * num_prompt_tokens + OUTPUT_TOKEN * num_output_tokens
        self._given[tenant] = self.given(tenant) + cost

    def join(self, tenant: str, others: Iterable[str]) -> None:
        """The tenant has work again; `others` have it too."""
        least = min((self.given(other) for other in others if other != tenant), default=0.0)
        self._given[tenant] = max(self.given(tenant), least)

    def least(self, tenants: Collection[str]) -> str:
        """Whose turn it is."""
        return min(tenants, key=self.given)
