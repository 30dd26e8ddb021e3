"""Requests in the order they arrived."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from scheduler.request import Request

_arrival_index = attrgetter("arrival_index")


class ArrivalList:
    """Requests sorted by `arrival_index`, whatever the order in which they join and leave."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __reversed__(self) -> Iterator[Request]:
        return reversed(self._requests)

    @property
    def oldest(self) -> Request:
        return self._requests[0]

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=_arrival_index)

    def remove(self, request: Request) -> None:
        index = bisect_left(self._requests, request.arrival_index, key=_arrival_index)
        assert self._requests[index] is request, f"{request.request_id} is not in the list"
        del self._requests[index]

    def younger_than(self, request: Request) -> list[Request]:
        """Those that arrived after `request`, youngest first."""
        first = bisect_left(self._requests, request.arrival_index + 1, key=_arrival_index)
        return self._requests[first:][::-1]
