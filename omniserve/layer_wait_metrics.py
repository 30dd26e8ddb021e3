"""How models share a device, as Prometheus metrics."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from omniserve.settings import WAIT_LAYER_BOUNDS, WAIT_SECOND_BOUNDS, LayerWaitStats


def layer_wait_metrics(stats: Mapping[str, LayerWaitStats]) -> Iterator[Metric]:
    """Of the models that share their device with others."""
    layers = HistogramMetricFamily(
        "omniserve_model_wait_layers",
        "Layers of other models that ran while latency-sensitive work was in a hurry, by step.",
        labels=("model",),
    )
    seconds = HistogramMetricFamily(
        "omniserve_model_wait_seconds",
        "Time that those layers took, by step.",
        labels=("model",),
    )
    parked = CounterMetricFamily(
        "omniserve_steps_parked",
        "Times a step stood back between two layers.",
        labels=("model",),
    )
    for model, waits in stats.items():
        layers.add_metric(
            (model,), _buckets(WAIT_LAYER_BOUNDS, waits.layer_counts), waits.layer_sum
        )
        seconds.add_metric(
            (model,), _buckets(WAIT_SECOND_BOUNDS, waits.second_counts), waits.second_sum
        )
        parked.add_metric((model,), waits.num_parked)
    yield from (layers, seconds, parked)


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(str(bound) for bound in bounds), "+Inf"]
    return list(zip(names, itertools.accumulate(counts), strict=True))
