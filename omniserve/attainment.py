"""Of the requests that ended lately, the share that met their tier's objectives."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from omniserve.promise import Verdict

WINDOW_S = 300.0
_SLICE_S = 5.0
"""Requests are forgotten a slice at a time, so memory does not grow with their number."""

_Tier = tuple[str, str]
"""Model and tier."""


@dataclass(slots=True)
class _Slice:
    """Requests that ended in one slice of time."""

    begin_s: float
    num_ended: Counter[_Tier] = field(default_factory=Counter)
    num_met: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By model, tier and objective."""


class Attainment(Collector):
    """The gauge `omniserve_slo_attainment`: absent of a tier of which no request ended lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slices: deque[_Slice] = deque()

    def note(self, model: str, tier: str, verdict: Verdict) -> None:
        """A request ended now that had objectives."""
        now_s = self._clock()
        self._forget(now_s)
        if not self._slices or now_s - self._slices[-1].begin_s >= _SLICE_S:
            self._slices.append(_Slice(now_s))
        newest = self._slices[-1]
        newest.num_ended[model, tier] += 1
        for objective, is_met in _objectives(verdict):
            newest.num_met[model, tier, objective] += is_met

    def shares(self) -> dict[tuple[str, str, str], float]:
        """By model, tier and objective: ttft, tpot, both."""
        self._forget(self._clock())
        num_ended: Counter[_Tier] = Counter()
        num_met: Counter[tuple[str, str, str]] = Counter()
        for each in self._slices:
            num_ended.update(each.num_ended)
            num_met.update(each.num_met)
        return {key: met / num_ended[key[0], key[1]] for key, met in num_met.items()}

    def _forget(self, now_s: float) -> None:
        while self._slices and now_s - self._slices[0].begin_s >= WINDOW_S:
            self._slices.popleft()

    def describe(self) -> Iterable[Metric]:
        return (_family(),)

    def collect(self) -> Iterator[Metric]:
        family = _family()
        for labels, share in self.shares().items():
            family.add_metric(labels, share)
        yield family


def _objectives(verdict: Verdict) -> Iterator[tuple[str, bool]]:
    yield from (("ttft", verdict.ttft), ("tpot", verdict.tpot), ("both", verdict.both))


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "omniserve_slo_attainment",
        "Share of the requests that ended in the last 5 minutes that met their tier's objectives.",
        labels=("model", "tier", "objective"),
    )
