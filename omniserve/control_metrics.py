"""How steps are held to objectives, as Prometheus metrics."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from omniserve.settings import ControlStats

_COUNTERS: tuple[tuple[str, str, Callable[[ControlStats], float]], ...] = (
    (
        "omniserve_step_predicted_seconds",
        "Predicted time of the steps whose time was measured.",
        lambda stats: stats.predicted_s,
    ),
    (
        "omniserve_step_measured_seconds",
        "Time that the same steps took.",
        lambda stats: stats.measured_s,
    ),
    (
        "omniserve_step_budget_seconds",
        "Time that steps with latency-sensitive decodes might have taken.",
        lambda stats: stats.budget_s,
    ),
)


def control_metrics(stats: Mapping[str, ControlStats]) -> Iterator[Metric]:
    """Of the models whose step times are known."""
    for name, text, number in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=("model",))
        for model, control in stats.items():
            counter.add_metric((model,), number(control))
        yield counter
    error = GaugeMetricFamily(
        "omniserve_step_error",
        "Mean of |measured - predicted| / measured over the last steps.",
        labels=("model",),
    )
    used = CounterMetricFamily(
        "omniserve_step_used_seconds",
        "Predicted time of all steps, by what each kind of work added to it.",
        labels=("model", "kind"),
    )
    aim = GaugeMetricFamily(
        "omniserve_tier_aim",
        "Part of its time per output token at which the tier is paced.",
        labels=("model", "tier"),
    )
    for model, control in stats.items():
        if control.num_steps:
            error.add_metric((model,), control.mean_error)
        for kind, seconds in control.used_s.items():
            used.add_metric((model, kind), seconds)
        for tier, share in control.aims.items():
            aim.add_metric((model, tier), share)
    yield from (error, used, aim)
