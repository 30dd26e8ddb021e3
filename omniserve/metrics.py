"""Prometheus metrics of the front, in a registry of their own.

One client request is one observation, whatever its number of prompts and choices.
Every duration starts when the request arrived at the front.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from omniserve.attainment import Attainment
from omniserve.calls.refusal_reason import RefusalReason
from omniserve.daemon_metrics import DaemonMetrics
from omniserve.engine_metrics import EngineCollector
from omniserve.model_life.metrics import ModelLifeMetrics
from omniserve.settings import ModelStats

Outcome = Literal[
    "ok",
    "late",
    "refused",
    "over_quota",
    "denied",
    "cancelled",
    "invalid",
    "unavailable",
    "error",
]
TokenKind = Literal["prompt", "cached", "output", "piggybacked"]

SpanFate = Literal["sent", "failed", "dropped"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

TTFT_BUCKETS_S = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
TPOT_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1),
    *(0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80),
)
E2E_BUCKETS_S = (
    *(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60),
    *(120, 240, 480, 960, 1920, 7680),
)


class Metrics:
    """Records requests and tokens; the engine's are read from snapshots when scraped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Else every series is there twice, once with the time of its creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._tiers: dict[str, int] = {}
        """All that ever were, each with the zero that its gauges begin with."""
        labels = ("model", "tier")
        self.ttft = self._histogram(
            "omniserve_ttft_seconds", "Time from arrival to the first token.", TTFT_BUCKETS_S
        )
        self.tpot = self._histogram(
            "omniserve_tpot_seconds",
            "Mean time per output token after the first, of one request.",
            TPOT_BUCKETS_S,
        )
        self.e2e = self._histogram(
            "omniserve_e2e_seconds", "Time from arrival to the last token.", E2E_BUCKETS_S
        )
        self.requests = Counter(
            "omniserve_requests_total",
            "Requests that ended, by outcome; model and tier are empty where they were not known.",
            (*labels, "outcome"),
            registry=self._registry,
        )
        self.tokens = Counter(
            "omniserve_tokens_total",
            "Tokens of requests: prompt (cached ones included), cached, "
            "output (piggybacked ones included), piggybacked.",
            (*labels, "kind"),
            registry=self._registry,
        )
        self.goodput = Counter(
            "omniserve_goodput_tokens_total",
            "Output tokens of requests that ended well and met their objectives and deadline.",
            labels,
            registry=self._registry,
        )
        self.calls = Counter(
            "omniserve_calls_total",
            "Calls that ended, by protocol, method, and the gRPC or HTTP status they ended with.",
            ("protocol", "method", "status"),
            registry=self._registry,
        )
        self.refusals = self._counter(
            "omniserve_refusals_total",
            "Calls that were refused, at the door or later, by reason.",
            "reason",
            get_args(RefusalReason),
        )
        self.spans = self._counter(
            "omniserve_trace_spans_total",
            "Spans of traces: sent to the collector, failed to be sent, dropped from a full queue.",
            "fate",
            get_args(SpanFate),
        )
        self.daemon = DaemonMetrics(self._registry)
        self.models = ModelLifeMetrics(self._registry)
        self.attainment = Attainment(clock)
        self._registry.register(self.attainment)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("model", "tier"), registry=self._registry, buckets=buckets)

    def _counter(self, name: str, text: str, label: str, values: Iterable[str]) -> Counter:
        """With all of its series, which are few and known."""
        counter = Counter(name, text, (label,), registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def expect(self, models: Iterable[str], tiers: Iterable[str]) -> None:
        """Creates every series at zero, so that rates are right from the first request on.

        May be called again with other tiers: series that are there stay.
        """
        tiers = tuple(tiers)
        self._tiers |= dict.fromkeys(tiers, 0)
        for model in models:
            for tier in tiers:
                for histogram in (self.ttft, self.tpot, self.e2e):
                    histogram.labels(model, tier)
                for outcome in get_args(Outcome):
                    self.requests.labels(model, tier, outcome)
                self.goodput.labels(model, tier)
                for kind in get_args(TokenKind):
                    self.tokens.labels(model, tier, kind)

    def watch_engine(self, stats: Callable[[], Mapping[str, ModelStats]]) -> None:
        """Adds what the engine counts, read from `stats` at every scrape."""
        self._registry.register(EngineCollector(stats, self._tiers))

    def register(self, collector: Collector) -> None:
        """Adds what somebody else counts, asked for it at every scrape."""
        self._registry.register(collector)

    def num_tokens(self, model: str, kind: TokenKind) -> int:
        """Tokens of one kind since the start, over all tiers."""
        samples = (sample for metric in self.tokens.collect() for sample in metric.samples)
        return sum(
            int(sample.value)
            for sample in samples
            if sample.name.endswith("_total")
            and (sample.labels["model"], sample.labels["kind"]) == (model, kind)
        )

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self._registry)
