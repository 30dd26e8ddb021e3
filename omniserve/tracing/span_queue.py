"""Spans on their way to the collector: bounded, and sent by a thread of their own."""

import logging
import queue
import threading

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import Counter

from omniserve.logs import get_logger, log_event
from omniserve.tracing.last_words import LastWords

MAX_WAITING_SPANS = 2048
BATCH_SPANS = 256
SEND_EVERY_S = 1.0
LAST_BATCH_S = 0.5
"""How long a batch takes, at most, that is given up."""

_logger = get_logger(__name__)


class SpanQueue(SpanProcessor):
    """Never blocks whoever ends a span: what a collector is too slow for is dropped and counted."""

    def __init__(
        self, exporter: SpanExporter, fates: Counter, max_waiting: int = MAX_WAITING_SPANS
    ) -> None:
        """`fates` counts by the label `fate`: sent, failed, dropped."""
        self._exporter = exporter
        self._sent, self._failed, self._dropped = (
            fates.labels(fate) for fate in ("sent", "failed", "dropped")
        )
        self._waiting: queue.Queue[ReadableSpan] = queue.Queue(max_waiting)
        self._wake = threading.Event()
        self._is_closing = threading.Event()
        self._is_reached = True
        self._last_words = LastWords("opentelemetry")
        self._sender = threading.Thread(target=self._run, name="span-sender", daemon=True)
        self._sender.start()

    def on_end(self, span: ReadableSpan) -> None:
        try:
            self._waiting.put_nowait(span)
        except queue.Full:
            self._dropped.inc()
            return
        if self._waiting.qsize() >= BATCH_SPANS:
            self._wake.set()

    def close(self, grace_s: float) -> None:
        """Sends what waits, for at most `grace_s`; gives up the rest. May be called once."""
        self._is_closing.set()
        self._wake.set()
        self._sender.join(grace_s)
        # Ends a batch that is under way, and the pauses between its retries.
        self._exporter.shutdown()
        self._sender.join(LAST_BATCH_S)
        self._last_words.close()

    def _run(self) -> None:
        while not self._is_closing.is_set():
            self._wake.wait(SEND_EVERY_S)
            self._wake.clear()
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while batch := self._next_batch():
            self._send(batch)
            if self._is_closing.is_set() and not self._is_reached:
                return

    def _next_batch(self) -> list[ReadableSpan]:
        batch: list[ReadableSpan] = []
        while len(batch) < BATCH_SPANS:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return batch

    def _send(self, batch: list[ReadableSpan]) -> None:
        try:
            is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
            reason = self._last_words.text
        except Exception as error:
            # The thread has to live on: a collector may be mended.
            is_sent, reason = False, f"{type(error).__name__}: {error}"
        (self._sent if is_sent else self._failed).inc(len(batch))
        if is_sent != self._is_reached:
            self._is_reached = is_sent
            if is_sent:
                log_event(_logger, "traces_arrive_again")
            else:
                log_event(_logger, "traces_lost", level=logging.WARNING, reason=reason)
