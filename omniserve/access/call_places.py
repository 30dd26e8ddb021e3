"""Places for calls that are answered at the same time."""

from collections import Counter

from omniserve.errors import Overloaded

RETRY_AFTER_S = 1.0


class CallPlaces:
    """Of one server. One tenant has half of them at most: its calls hold a place from the moment
    its token is known, long before a quota looks at what they ask for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = max(1, most // 2)
        self._num_taken = 0
        self._taken_by: Counter[str] = Counter()

    def take(self, tenant: str) -> None:
        """Takes a place until `free`; empty stands for whoever calls where there are no tenants.

        Raises Overloaded where all are taken, or half of them by this tenant.
        """
        if self._num_taken >= self._most:
            problem = f"{self._most} requests are being answered; no more are taken"
            raise Overloaded(problem, RETRY_AFTER_S)
        if tenant and self._taken_by[tenant] >= self._most_of_one:
            problem = f"{self._most_of_one} requests of tenant {tenant!r} are being answered"
            raise Overloaded(f"{problem}; no more are taken", RETRY_AFTER_S)
        self._num_taken += 1
        self._taken_by[tenant] += 1

    def free(self, tenant: str) -> None:
        """One that it had taken."""
        self._num_taken -= 1
        self._taken_by[tenant] -= 1
        if not self._taken_by[tenant]:
            del self._taken_by[tenant]
