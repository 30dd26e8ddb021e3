"""Spans on their way to a collector that may be slow, broken or gone."""

import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from omniserve.metrics import Metrics
from omniserve.tracing.span_queue import BATCH_SPANS, SpanQueue

PATIENCE_S = 60.0


class GatedExporter(SpanExporter):
    """Takes a batch and lets it go when its gate is open; `verdicts` are its answers in turn."""

    def __init__(self, verdicts: Sequence[SpanExportResult | Exception] = ()) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.sizes: list[int] = []
        self.is_shut_down = False
        self._verdicts = list(verdicts)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        self.sizes.append(len(spans))
        verdict = self._verdicts.pop(0) if self._verdicts else SpanExportResult.SUCCESS
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def shutdown(self) -> None:
        self.is_shut_down = True
        self.gate.set()


def fate(metrics: Metrics, name: str) -> float:
    samples = (sample for family in metrics.spans.collect() for sample in family.samples)
    return sum(each.value for each in samples if each.labels["fate"] == name)


def make_span() -> ReadableSpan:
    return ReadableSpan("span")


def test_what_does_not_fit_is_dropped_and_the_rest_arrives() -> None:
    metrics, exporter = Metrics(), GatedExporter()
    spans = SpanQueue(exporter, metrics.spans, max_waiting=2 * BATCH_SPANS)
    # Of one span: more of them would be several batches where the sender wakes up between.
    spans.on_end(make_span())
    assert exporter.entered.wait(PATIENCE_S)
    # The first batch is under way; so many may wait, and no more.
    for _ in range(2 * BATCH_SPANS + 7):
        spans.on_end(make_span())
    assert fate(metrics, "dropped") == 7
    exporter.gate.set()
    spans.close(PATIENCE_S)
    assert exporter.sizes == [1, BATCH_SPANS, BATCH_SPANS]
    assert fate(metrics, "sent") == 1 + 2 * BATCH_SPANS
    assert exporter.is_shut_down


def test_trouble_is_logged_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "omniserve")
    failure, success = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    exporter = GatedExporter([failure, RuntimeError("odd"), success, success])
    exporter.gate.set()
    metrics = Metrics()
    spans = SpanQueue(exporter, metrics.spans)
    for batch in range(4):
        spans.on_end(make_span())
        spans._wake.set()
        while len(exporter.sizes) <= batch:
            threading.Event().wait(0.001)
    spans.close(PATIENCE_S)
    events = [each.getMessage() for each in caplog.records]
    assert events == ["traces_lost", "traces_arrive_again"]
    assert (fate(metrics, "failed"), fate(metrics, "sent")) == (2, 2)


def test_an_exporter_that_hangs_is_given_up() -> None:
    exporter = GatedExporter()
    spans = SpanQueue(exporter, Metrics().spans)
    spans.on_end(make_span())
    spans.close(0.01)
    assert exporter.is_shut_down
    spans._sender.join(PATIENCE_S)
    assert not spans._sender.is_alive()
