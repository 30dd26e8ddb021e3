"""For how long latency-sensitive requests stood behind layers of other models, by the server's own
metrics."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from omniserve.bench.run_record import RunRecord
from omniserve.errors import OmniServeError

LAYER_WAITS = "layer_waits"
"""Fact of a window in which a daemon of several models answered latency-sensitive requests."""
WAIT_SHARE = 0.99
"""Of the steps with latency-sensitive rows: the percentile that is told."""
_LAYERS, _SECONDS = "omniserve_model_wait_layers", "omniserve_model_wait_seconds"
_STEPS, _STEP_SECONDS = "omniserve_steps_total", "omniserve_step_used_seconds_total"
_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class WaitCounts:
    """A histogram over steps with latency-sensitive rows."""

    bounds: tuple[float, ...]
    within: tuple[int, ...]
    """Steps whose wait was at most each of the bounds."""
    num_steps: int
    total: float
    """Waits of all steps together."""

    def bound_of(self, share: float) -> float:
        """The least bound that so many of the steps kept; infinite where it is none of them."""
        kept = zip(self.bounds, self.within, strict=True)
        return next((bound for bound, num in kept if num >= share * self.num_steps), inf)

    def since(self, before: "WaitCounts") -> "WaitCounts":
        return self._with(before, -1)

    def with_those_of(self, other: "WaitCounts") -> "WaitCounts":
        return self._with(other, 1)

    def _with(self, other: "WaitCounts", sign: int) -> "WaitCounts":
        pairs = zip(self.within, other.within, strict=True)
        return WaitCounts(
            self.bounds,
            tuple(own + sign * others for own, others in pairs),
            self.num_steps + sign * other.num_steps,
            self.total + sign * other.total,
        )


@dataclass(frozen=True, slots=True)
class LayerWaits:
    """Of the latency-sensitive model, and what a layer of the other one takes."""

    layers: WaitCounts
    seconds: WaitCounts
    num_other_steps: int
    other_steps_s: float
    """Predicted time of the other model's steps; 0 where nothing is known of times."""
    num_other_layers: int | None = None
    """Of a step of the other model."""

    def since(self, before: "LayerWaits | None") -> "LayerWaits":
        """What came after an earlier reading of the same server."""
        if before is None:
            return self
        return LayerWaits(
            self.layers.since(before.layers),
            self.seconds.since(before.seconds),
            self.num_other_steps - before.num_other_steps,
            self.other_steps_s - before.other_steps_s,
            self.num_other_layers,
        )

    def with_those_of(self, other: "LayerWaits") -> "LayerWaits":
        return LayerWaits(
            self.layers.with_those_of(other.layers),
            self.seconds.with_those_of(other.seconds),
            self.num_other_steps + other.num_other_steps,
            self.other_steps_s + other.other_steps_s,
            self.num_other_layers,
        )

    @property
    def other_layer_ms(self) -> float | None:
        """Mean time of a layer of the other model."""
        if not self.num_other_steps or not self.other_steps_s or not self.num_other_layers:
            return None
        return 1e3 * self.other_steps_s / self.num_other_steps / self.num_other_layers

    @property
    def text(self) -> str:
        """In words."""
        layers, seconds = self.layers.bound_of(WAIT_SHARE), self.seconds.bound_of(WAIT_SHARE)
        one_ms = self.other_layer_ms
        beside = "" if one_ms is None else f"; a layer takes {one_ms:.2f} ms on average"
        most = f"more than {self.layers.bounds[-1]:g}" if layers == inf else f"at most {layers:g}"
        most_ms = "" if seconds == inf else f", at most {1e3 * seconds:g} ms"
        return f"p99 {most} layers{most_ms}, of {self.layers.num_steps:,} steps{beside}"


def read_layer_waits(text: str, model: str, other: str) -> LayerWaits | None:
    """From metrics in Prometheus' text format; None where the first model never shared a device."""
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    layers, seconds = _counts(samples, _LAYERS, model), _counts(samples, _SECONDS, model)
    if layers is None or seconds is None:
        return None
    num_steps = sum(each.value for each in _of_model(samples, _STEPS, other))
    steps_s = sum(each.value for each in _of_model(samples, _STEP_SECONDS, other))
    return LayerWaits(layers, seconds, int(num_steps), steps_s)


def ask_layer_waits(url: str, model: str, other: str) -> LayerWaits | None:
    """Of a daemon's metrics. Raises OmniServeError where it does not tell them."""
    try:
        # A proxy of the environment has no business with a server of this machine.
        answer = httpx.get(f"{url}/metrics", timeout=_ANSWER_S, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise OmniServeError(f"{url}/metrics: {error}") from None
    return read_layer_waits(answer.text, model, other)


def note_layer_waits(record: RunRecord, waits: LayerWaits) -> None:
    """As a fact of the window."""
    noted = replace(waits, num_other_layers=record.num_layers)
    record.facts[LAYER_WAITS] = msgspec.to_builtins(noted)


def layer_waits_of(record: RunRecord) -> LayerWaits | None:
    """Of one window."""
    told: dict[str, Any] | None = record.facts.get(LAYER_WAITS)
    return None if told is None else msgspec.convert(told, LayerWaits)


def all_together(each: Iterable[LayerWaits | None]) -> LayerWaits | None:
    """Of several windows; None where none of them has any."""
    total = None
    for waits in each:
        if waits is not None:
            total = waits if total is None else total.with_those_of(waits)
    return total


def _counts(samples: Sequence[Sample], name: str, model: str) -> WaitCounts | None:
    buckets = {
        float(each.labels["le"]): int(each.value)
        for each in _of_model(samples, f"{name}_bucket", model)
    }
    if not buckets:
        return None
    num_steps = buckets.pop(inf)
    total = sum(each.value for each in _of_model(samples, f"{name}_sum", model))
    bounds = tuple(sorted(buckets))
    return WaitCounts(bounds, tuple(buckets[bound] for bound in bounds), num_steps, total)


def _of_model(samples: Sequence[Sample], name: str, model: str) -> Iterator[Sample]:
    return (each for each in samples if each.name == name and each.labels.get("model") == model)
