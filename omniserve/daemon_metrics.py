"""The daemon itself as Prometheus metrics: its version, its configuration, its engine."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from omniserve import __version__


@dataclass(frozen=True, slots=True)
class EngineCondition:
    """What supervision knows at a moment."""

    is_up: bool
    is_accepting: bool
    """Whether a request would be accepted."""
    num_restarts: int


class DaemonMetrics:
    """Registered as long as the daemon lives."""

    def __init__(
        self, registry: CollectorRegistry, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """The configuration counts as taken over now."""
        self._registry = registry
        self._wall_clock = wall_clock
        build = Gauge(
            "omniserve_build_info",
            "Always 1; the labels tell what runs.",
            ("version", "python"),
            registry=registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        self._reload_successful = Gauge(
            "omniserve_config_last_reload_successful",
            "1 where the configuration file was taken over when it was read last, else 0.",
            registry=registry,
        )
        self._reload_timestamp = Gauge(
            "omniserve_config_last_reload_timestamp_seconds",
            "When a configuration file was taken over last, as Unix time.",
            registry=registry,
        )
        self.note_reload(is_accepted=True)
        ProcessCollector(registry=registry)

    def note_reload(self, *, is_accepted: bool) -> None:
        """The configuration file was read again."""
        self._reload_successful.set(is_accepted)
        if is_accepted:
            self._reload_timestamp.set(self._wall_clock())

    def watch_supervision(self, condition: Callable[[], EngineCondition]) -> None:
        """Adds what `condition` says at every scrape."""
        self._registry.register(_SupervisionCollector(condition))


class _SupervisionCollector(Collector):
    def __init__(self, condition: Callable[[], EngineCondition]) -> None:
        self._condition = condition

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        now = self._condition()
        yield GaugeMetricFamily(
            "omniserve_engine_up", "1 while the engine process is ready.", value=now.is_up
        )
        yield GaugeMetricFamily(
            "omniserve_accepting_requests",
            "1 while requests are accepted: the engine is ready, the daemon is not stopping.",
            value=now.is_accepting,
        )
        yield CounterMetricFamily(
            "omniserve_engine_restarts",
            "Times the engine process was started again.",
            value=now.num_restarts,
        )
