"""Layers that were run once for steps of several models, as Prometheus metrics."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from omniserve.settings import JointLayerStats


def joint_layer_metrics(stats: Mapping[str, JointLayerStats]) -> Iterator[Metric]:
    """By model."""
    layers = CounterMetricFamily(
        "omniserve_shared_layers",
        "Layers of the model's steps that ran in one batch with steps of other models.",
        labels=("model",),
    )
    rows = CounterMetricFamily(
        "omniserve_shared_layer_rows",
        "Rows of the model that were in such batches, counted at every layer.",
        labels=("model",),
    )
    for model, joint in stats.items():
        layers.add_metric((model,), joint.num_layers)
        rows.add_metric((model,), joint.num_rows)
    yield from (layers, rows)
