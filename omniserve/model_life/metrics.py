"""Models that come and go, as Prometheus metrics."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from omniserve.model_life.standing import ModelState

LoadOutcome = Literal["loaded", "failed", "cancelled"]
WakeOutcome = Literal["awake", "refused", "failed", "interrupted"]

LOAD_BUCKETS_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240, 480, 960)


class ModelLifeMetrics:
    """Registered as long as the daemon lives."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.loads = Counter(
            "omniserve_model_loads_total",
            "Loads of models that ended while the daemon ran, by outcome.",
            ("outcome",),
            registry=registry,
        )
        for outcome in get_args(LoadOutcome):
            self.loads.labels(outcome)
        self.unloads = Counter(
            "omniserve_model_unloads_total",
            "Models that were unloaded while the daemon ran.",
            registry=registry,
        )
        self.load_seconds = Histogram(
            "omniserve_model_load_seconds",
            "Time from the begin of a load until requests for the model were answered.",
            registry=registry,
            buckets=LOAD_BUCKETS_S,
        )

        self.sleeps = Counter(
            "omniserve_model_sleeps_total",
            "Times a model fell asleep.",
            registry=registry,
        )
        self.wakes = Counter(
            "omniserve_model_wakes_total",
            "Wakes of models that ended, by outcome.",
            ("outcome",),
            registry=registry,
        )
        for outcome in get_args(WakeOutcome):
            self.wakes.labels(outcome)
        self.wake_seconds = Histogram(
            "omniserve_model_wake_seconds",
            "Time from the begin of a wake until requests for the model were answered.",
            registry=registry,
            buckets=LOAD_BUCKETS_S,
        )

    def watch_models(self, states: Callable[[], Iterable[ModelState]]) -> None:
        """Adds how many models are in which state, asked for at every scrape."""
        self._registry.register(_StatesCollector(states))


class _StatesCollector(Collector):
    def __init__(self, states: Callable[[], Iterable[ModelState]]) -> None:
        self._states = states

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        numbers = Tally(self._states())
        family = GaugeMetricFamily("omniserve_models", "Models, by state.", labels=("state",))
        for state in get_args(ModelState):
            family.add_metric((state,), numbers[state])
        yield family
