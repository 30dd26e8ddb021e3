"""Weights in memory as Prometheus metrics."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from omniserve.settings import WeightStats


def weight_metrics(stats: Mapping[str, WeightStats]) -> Iterator[Metric]:
    """By model. What is in memory is what all models hold together, less what sharing saves."""
    held = GaugeMetricFamily(
        "omniserve_weights_bytes",
        "Weights that the model holds: its own, and those that other models hold as well.",
        labels=("model", "kind"),
    )
    saved = GaugeMetricFamily(
        "omniserve_weights_saved_bytes",
        "The model's equal part of the memory that shared weights save.",
        labels=("model",),
    )
    for name, weights in stats.items():
        held.add_metric((name, "own"), weights.own_bytes)
        held.add_metric((name, "shared"), weights.shared_bytes)
        saved.add_metric((name,), weights.saved_bytes)
    yield from (held, saved)
