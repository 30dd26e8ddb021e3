"""How many LS requests a second LS alone keeps within its objectives."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from omniserve.errors import OmniServeError

CAPACITY_SHARE = 0.95
"""LS alone keeps so many of its requests within both objectives up to its capacity."""
NUM_RATES = 5
NUM_WINDOWS_AT_EDGE = 3
"""At a rate that is near the capacity: a window has few requests, and the machine's pace changes
from window to window."""
RANGE = 16.0
"""Highest over lowest rate of the search."""
_CLEARLY_TOO_FAST = 0.8
"""Held by so few, one window says enough of a rate."""


@dataclass(frozen=True, slots=True)
class WindowShare:
    """Of one window."""

    num_requests: int
    num_within: int
    """Both objectives."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A rate at which LS alone was measured."""

    rate: float
    windows: tuple[WindowShare, ...]

    @property
    def share(self) -> float:
        """Joint attainment of the requests of all its windows."""
        num_requests = sum(each.num_requests for each in self.windows)
        return sum(each.num_within for each in self.windows) / num_requests

    @property
    def is_held(self) -> bool:
        return self.share >= CAPACITY_SHARE

    @property
    def is_settled(self) -> bool:
        """Whether more windows would tell nothing more of it, if the capacity is elsewhere."""
        has_all = len(self.windows) >= NUM_WINDOWS_AT_EDGE
        return has_all or self.share < _CLEARLY_TOO_FAST or self.share == 1.0

    @property
    def text(self) -> str:
        number = len(self.windows)
        return f"{self.share:.0%} at {self.rate:g} in {number} window{'' if number == 1 else 's'}"


Measure = Callable[[float, int], Awaitable[WindowShare]]
"""One window at a rate; the number tells the windows of a rate apart."""


async def search_capacity(most: float, measure: Measure) -> tuple[Probe, ...]:
    """Halves a range of rates up to `most`, on a logarithmic scale; the rates in the order in which
    they were asked for. The highest of them that is held is so in all windows of an edge."""
    low, high = most / RANGE, most
    probes: list[Probe] = []
    for _ in range(NUM_RATES):
        rate = round((low * high) ** 0.5, 2)
        probe = Probe(rate, (await measure(rate, 1),))
        while not probe.is_settled:
            probe = await _once_more(probe, measure)
        probes.append(probe)
        low, high = (rate, high) if probe.is_held else (low, rate)
    # What one window held may have been luck, and now it decides.
    while (best := highest_held(probes)) is not None:
        if len(best.windows) >= NUM_WINDOWS_AT_EDGE:
            break
        probes[probes.index(best)] = await _once_more(best, measure)
    return tuple(probes)


def highest_held(probes: Sequence[Probe]) -> Probe | None:
    return max((each for each in probes if each.is_held), key=lambda each: each.rate, default=None)


def capacity_of(probes: Sequence[Probe]) -> float:
    """Raises OmniServeError where LS alone holds no rate."""
    best = highest_held(probes)
    if best is None:
        last = min(probes, key=lambda each: each.rate)
        raise OmniServeError(
            f"LS alone keeps {last.share:.0%} of {last.rate:g} requests/s within its objectives: "
            "nothing can be compared by that; look for what else computes, or give --capacity"
        )
    return best.rate


async def _once_more(probe: Probe, measure: Measure) -> Probe:
    number = len(probe.windows) + 1
    return Probe(probe.rate, (*probe.windows, await measure(probe.rate, number)))
