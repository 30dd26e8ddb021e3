"""Who has how much of the device's KV memory, and what moves between models, as metrics."""

import itertools
from collections.abc import Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric

from omniserve.settings import KV_WAIT_BOUNDS_S, KvShareStats, ModelStats


def kv_share_metrics(stats: Mapping[str, ModelStats]) -> Iterator[Metric]:
    """Of all models what they have; of those that share a budget what is theirs of it."""
    labels = ("model",)
    granted = GaugeMetricFamily(
        "omniserve_kv_granted_bytes", "KV memory on the device that the model has.", labels=labels
    )
    cached = GaugeMetricFamily(
        "omniserve_kv_cached_bytes", "Of that, known prefixes that no request holds.", labels=labels
    )
    for name, model in stats.items():
        granted.add_metric((name,), model.kv_granted_bytes)
        cached.add_metric((name,), model.kv_cached_bytes)
    yield from (granted, cached)
    yield from _share_metrics(
        {name: model.kv_share for name, model in stats.items() if model.kv_share is not None}
    )


def _share_metrics(shares: Mapping[str, KvShareStats]) -> Iterator[Metric]:
    by_direction = ("model", "direction")
    floor = GaugeMetricFamily(
        "omniserve_kv_floor_bytes", "KV memory kept for the model.", labels=("model",)
    )
    moves = CounterMetricFamily(
        "omniserve_kv_moves", "Times the model got or gave up KV memory.", labels=by_direction
    )
    moved = CounterMetricFamily(
        "omniserve_kv_moved_bytes", "KV memory it got or gave up.", labels=by_direction
    )
    waits = HistogramMetricFamily(
        "omniserve_kv_move_seconds",
        "Time from when the model was to have more KV memory until it had it.",
        labels=("model",),
    )
    bounds = [*map(str, KV_WAIT_BOUNDS_S), "+Inf"]
    for name, share in shares.items():
        floor.add_metric((name,), share.floor_bytes)
        moves.add_metric((name, "in"), share.num_moves_in)
        moves.add_metric((name, "out"), share.num_moves_out)
        moved.add_metric((name, "in"), share.in_bytes)
        moved.add_metric((name, "out"), share.out_bytes)
        counts = itertools.accumulate(share.wait_counts)
        waits.add_metric((name,), list(zip(bounds, counts, strict=True)), share.wait_s)
    yield from (floor, moves, moved, waits)
