"""Requests of one service class that wait to be admitted, and who is next."""

from collections import Counter
from collections.abc import Iterator
from heapq import merge
from math import inf

from scheduler.arrival_list import ArrivalList
from scheduler.fair_share import FairShare
from scheduler.objectives import Objectives
from scheduler.request import Request

_AGE_S = 60.0
"""Whoever has waited for so long goes first, whatever its tenant has had."""


class WaitingLine:
    """By tenant the one that has had least, within a tenant whoever can still be in time.

    One that has a due time goes before those that have none, the earliest first; one whose time
    has passed goes behind all others, and so never takes from who can be saved.
    """

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self._by_tenant: dict[str, ArrivalList] = {}
        self._num_due = 0
        self.num_waiting: Counter[str] = Counter()
        """By tier."""
        self.num_left: Counter[str] = Counter()
        """By tier: those that ever went from here, to run or to end."""

    def __len__(self) -> int:
        return sum(map(len, self._by_tenant.values()))

    def __iter__(self) -> Iterator[Request]:
        """In order of arrival."""
        return merge(*self._by_tenant.values(), key=_arrival_index)

    def add(self, request: Request) -> None:
        line = self._by_tenant.get(request.tenant)
        if line is None:
            self._shares.join(request.tenant, self._by_tenant)
            line = self._by_tenant[request.tenant] = ArrivalList()
        line.add(request)
        self._num_due += request.due_s < inf
        self.num_waiting[request.tier] += 1

    def remove(self, request: Request) -> None:
        line = self._by_tenant[request.tenant]
        line.remove(request)
        self._num_due -= request.due_s < inf
        self.num_waiting[request.tier] -= 1
        self.num_left[request.tier] += 1
        if not line:
            del self._by_tenant[request.tenant]
            self._shares.leave(request.tenant)

    @property
    def oldest(self) -> Request:
        """Who came first; the line must not be empty."""
        return min((line.oldest for line in self._by_tenant.values()), key=_arrival_index)

    def promise(self, request: Request, objectives: Objectives | None) -> None:
        """It waits on, with other objectives."""
        self._num_due -= request.due_s < inf
        request.objectives = objectives
        self._num_due += request.due_s < inf

    def next(self, now_s: float) -> Request:
        """Whose turn it is; the line must not be empty."""
        oldest = self.oldest
        if now_s - oldest.arrival_s >= _AGE_S:
            return oldest
        line = self._by_tenant[self._shares.least(self._by_tenant)]
        if not self._num_due:
            return line.oldest
        return min(line, key=lambda each: _urgency(each, now_s))

    def num_before(self, request: Request, now_s: float) -> int:
        """Requests of its own tenant that go before it."""
        place = _urgency(request, now_s)
        return sum(_urgency(each, now_s) < place for each in self._by_tenant[request.tenant])

    def given(self, tenant: str) -> float:
        """Weighted tokens that the tenant has had."""
        return self._shares.given(tenant)


def _urgency(request: Request, now_s: float) -> tuple[bool, float, int]:
    # One that lost its place amid its tokens is due already, and has not missed it for that.
    is_lost = request.first_token_s is None and request.due_s < now_s
    return is_lost, request.due_s, request.arrival_index


def _arrival_index(request: Request) -> int:
    return request.arrival_index
