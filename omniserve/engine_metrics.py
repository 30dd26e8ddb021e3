"""The engine's snapshots as Prometheus metrics, made when they are scraped."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from omniserve.control_metrics import control_metrics
from omniserve.joint_layer_metrics import joint_layer_metrics
from omniserve.kv_share_metrics import kv_share_metrics
from omniserve.layer_wait_metrics import layer_wait_metrics
from omniserve.settings import ModelStats, PiggybackStats
from omniserve.weight_metrics import weight_metrics

_Number = Callable[[PiggybackStats], float]

_GAUGES: tuple[tuple[str, str, _Number], ...] = (
    (
        "omniserve_piggyback_active",
        "1 while best-effort decodes may move to the host.",
        lambda stats: stats.active,
    ),
    (
        "omniserve_host_attention_up",
        "1 while the host attention process takes work.",
        lambda stats: stats.host_state == "ready",
    ),
    (
        "omniserve_offloaded_requests",
        "Sequences whose KV is on the host, or on its way there or back.",
        lambda stats: stats.num_offloaded,
    ),
    (
        "omniserve_lane_rows_ready",
        "Rows whose attention is done and that wait to join a step.",
        lambda stats: stats.num_ready_rows,
    ),
    (
        "omniserve_host_queue_depth",
        "Rows whose attention is queued or being computed on the host.",
        lambda stats: stats.num_on_host,
    ),
    (
        "omniserve_lane_residual_bytes",
        "Residuals kept of rows that are between two layers.",
        lambda stats: stats.residual_bytes,
    ),
)

_COUNTERS: tuple[tuple[str, str, _Number], ...] = (
    (
        "omniserve_lane_rows_joined",
        "Rows from the host that joined a step, counted at every layer.",
        lambda stats: stats.num_rows_joined,
    ),
    (
        "omniserve_host_kv_read_bytes",
        "KV that host attention was asked to read.",
        lambda stats: stats.host_kv_read_bytes,
    ),
    (
        "omniserve_host_attention_restarts",
        "Times the host attention process was started again.",
        lambda stats: stats.num_host_restarts,
    ),
    (
        "omniserve_host_tasks_redone",
        "Attention tasks that were lost with a process and done again.",
        lambda stats: stats.num_tasks_redone,
    ),
)

_HOP_BOUNDS = ("0.0", "1.0", "2.0", "3.0", "7.0", "15.0", "+Inf")
"""Upper bounds of `PiggybackStats.hop_steps_counts`."""


class EngineCollector(Collector):
    """Asks `stats` for the newest snapshot of every model at each scrape."""

    def __init__(
        self, stats: Callable[[], Mapping[str, ModelStats]], zeros: Mapping[str, int]
    ) -> None:
        """`zeros` has every tier there is, also those that are added to it later."""
        self._stats = stats
        # A series that disappears when nothing runs would keep its last value in a graph.
        self._zeros = zeros

    def describe(self) -> Iterable[Metric]:
        return (
            *_model_metrics({}, self._zeros),
            *control_metrics({}),
            *layer_wait_metrics({}),
            *weight_metrics({}),
            *joint_layer_metrics({}),
            *kv_share_metrics({}),
            *_piggyback_metrics({}),
        )

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from _model_metrics(stats, self._zeros)
        yield from control_metrics(
            {name: model.control for name, model in stats.items() if model.control}
        )
        yield from layer_wait_metrics(
            {name: model.layer_waits for name, model in stats.items() if model.layer_waits}
        )
        yield from weight_metrics(
            {name: model.weights for name, model in stats.items() if model.weights}
        )
        yield from joint_layer_metrics(
            {name: model.joint_layers for name, model in stats.items() if model.joint_layers}
        )
        yield from kv_share_metrics(stats)
        yield from _piggyback_metrics(
            {name: model.piggyback for name, model in stats.items() if model.piggyback}
        )


def _model_metrics(stats: Mapping[str, ModelStats], zeros: Mapping[str, int]) -> Iterator[Metric]:
    by_tier, by_pool = ("model", "tier"), ("model", "pool")
    running = GaugeMetricFamily(
        "omniserve_running_requests", "Sequences that run, on device or host.", labels=by_tier
    )
    waiting = GaugeMetricFamily(
        "omniserve_waiting_requests", "Sequences that wait.", labels=by_tier
    )
    used = GaugeMetricFamily("omniserve_kv_used_bytes", "KV memory in use.", labels=by_pool)
    total = GaugeMetricFamily("omniserve_kv_total_bytes", "KV memory there is.", labels=by_pool)
    steps = CounterMetricFamily("omniserve_steps", "Steps of the model.", labels=("model",))
    preemptions = CounterMetricFamily(
        "omniserve_preemptions",
        "Times a request lost its place on the device to another.",
        labels=("model",),
    )
    for name, model in stats.items():
        for family, tiers in ((running, model.running), (waiting, model.waiting)):
            for tier, count in {**zeros, **tiers}.items():
                family.add_metric((name, tier), count)
        used.add_metric((name, "device"), model.kv_used_bytes)
        total.add_metric((name, "device"), model.kv_total_bytes)
        steps.add_metric((name,), model.num_steps)
        preemptions.add_metric((name,), model.num_preemptions)
        if model.piggyback is not None:
            used.add_metric((name, "host"), model.piggyback.host_kv_used_bytes)
            total.add_metric((name, "host"), model.piggyback.host_kv_total_bytes)
    yield from (running, waiting, used, total, steps, preemptions)


def _piggyback_metrics(stats: Mapping[str, PiggybackStats]) -> Iterator[Metric]:
    for name, text, number in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=("model",))
        for model, piggyback in stats.items():
            gauge.add_metric((model,), number(piggyback))
        yield gauge
    for name, text, number in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=("model",))
        for model, piggyback in stats.items():
            counter.add_metric((model,), number(piggyback))
        yield counter
    yield _layer_metric(stats)
    yield from _swap_metrics(stats)
    yield _hop_metric(stats)


def _layer_metric(stats: Mapping[str, PiggybackStats]) -> Metric:
    rows = GaugeMetricFamily(
        "omniserve_lane_layer_rows",
        "Rows between leaving a layer and joining behind it: on the host, or ready.",
        labels=("model", "layer", "state"),
    )
    for model, piggyback in stats.items():
        for state, counts in (
            ("on_host", piggyback.rows_on_host_by_layer),
            ("ready", piggyback.rows_ready_by_layer),
        ):
            for layer, count in enumerate(counts):
                rows.add_metric((model, str(layer), state), count)
    return rows


def _swap_metrics(stats: Mapping[str, PiggybackStats]) -> Iterator[Metric]:
    labels = ("model", "direction")
    swaps = CounterMetricFamily(
        "omniserve_kv_swaps", "Requests whose KV moved to the host or back.", labels=labels
    )
    swap_bytes = CounterMetricFamily(
        "omniserve_kv_swap_bytes", "KV copied to the host or back.", labels=labels
    )
    for model, piggyback in stats.items():
        swaps.add_metric((model, "out"), piggyback.num_swaps_out)
        swaps.add_metric((model, "in"), piggyback.num_swaps_in)
        swap_bytes.add_metric((model, "out"), piggyback.swap_out_bytes)
        swap_bytes.add_metric((model, "in"), piggyback.swap_in_bytes)
    yield from (swaps, swap_bytes)


def _hop_metric(stats: Mapping[str, PiggybackStats]) -> Metric:
    hops = HistogramMetricFamily(
        "omniserve_lane_hop_steps",
        "Steps from a row's leaving a layer to its joining there again.",
        labels=("model",),
    )
    for model, piggyback in stats.items():
        counts = itertools.accumulate(piggyback.hop_steps_counts)
        buckets = list(zip(_HOP_BOUNDS, counts, strict=True))
        hops.add_metric((model,), buckets, piggyback.hop_steps_sum)
    return hops
