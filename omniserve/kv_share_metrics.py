"""Who has how much of the device's and the host's KV memory, and what moves, as metrics."""

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
    labels = ("model", "pool")
    granted = GaugeMetricFamily(
        "omniserve_kv_granted_bytes", "KV memory that the model has.", labels=labels
    )
    cached = GaugeMetricFamily(
        "omniserve_kv_cached_bytes", "Of that, known prefixes that no request holds.", labels=labels
    )
    for name, model in stats.items():
        granted.add_metric((name, "device"), model.kv_granted_bytes)
        cached.add_metric((name, "device"), model.kv_cached_bytes)
        if model.piggyback is not None:
            granted.add_metric((name, "host"), model.piggyback.host_kv_granted_bytes)
            cached.add_metric((name, "host"), model.piggyback.host_kv_cached_bytes)
    yield from (granted, cached)
    shares = {
        (name, pool): share
        for name, model in stats.items()
        for pool, share in (("device", model.kv_share), ("host", model.host_kv_share))
        if share is not None
    }
    yield from _share_metrics(shares)


def _share_metrics(shares: Mapping[tuple[str, str], KvShareStats]) -> Iterator[Metric]:
    """By model and pool."""
    labels = ("model", "pool")
    by_direction = (*labels, "direction")
    floor = GaugeMetricFamily(
        "omniserve_kv_floor_bytes", "KV memory kept for the model.", labels=labels
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
        labels=labels,
    )
    bounds = [*map(str, KV_WAIT_BOUNDS_S), "+Inf"]
    for of, share in shares.items():
        floor.add_metric(of, share.floor_bytes)
        moves.add_metric((*of, "in"), share.num_moves_in)
        moves.add_metric((*of, "out"), share.num_moves_out)
        moved.add_metric((*of, "in"), share.in_bytes)
        moved.add_metric((*of, "out"), share.out_bytes)
        counts = itertools.accumulate(share.wait_counts)
        waits.add_metric(of, list(zip(bounds, counts, strict=True)), share.wait_s)
    yield from (floor, moves, moved, waits)
