"""Makes a span of every call that has ended and is sampled."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from omniserve import __version__
from omniserve.calls.call_record import CallRecord
from omniserve.decision import Decision
from omniserve.errors import OmniServeError
from omniserve.tracing.call_span import attributes_of, events_of, failure_of
from omniserve.tracing.span_queue import SpanQueue

MAX_QUESTIONS = 64
"""Questions to the engine at a time; calls beyond them are traced with what the front knows."""
ANSWER_S = 2.0

Explain = Callable[[str], Awaitable[tuple[Decision, ...]]]


class Tracing:
    """Of one daemon. Made inside a running event loop; `close` must be called."""

    def __init__(self, spans: SpanQueue, sample_share: float, explain: Explain) -> None:
        """`sample_share` of the calls that are not part of a caller's trace are traced; those that
        are, where their caller is. `explain` tells what became of a request."""
        self._spans = spans
        self._explain = explain
        # What the environment says of the service wins over what we call ourselves.
        ours = Resource.create({"service.name": "omniserve", "service.version": __version__})
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_share)),
            resource=ours.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(spans)
        self._tracer = provider.get_tracer("omniserve", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._questions: set[asyncio.Task[None]] = set()

    def record(self, call: CallRecord) -> str:
        """The trace's id; empty where the call is not traced.

        The span is made now, when all is known of the call: nothing happens while it runs.
        """
        # Spans are on the clock of the world, calls on one that never jumps.
        end_ns, end_s = time.time_ns(), time.monotonic()
        offset_ns = end_ns - round(end_s * 1e9)
        span = self._tracer.start_span(
            call.method or call.protocol,
            context=self._propagator.extract(call.trace_headers, Context()),
            kind=SpanKind.SERVER,
            attributes=attributes_of(call),
            start_time=offset_ns + round(call.arrival_s * 1e9),
        )
        if not span.is_recording():
            return ""
        failure = failure_of(call)
        if failure is not None:
            span.set_attribute("error.type", failure)
            span.set_status(Status(StatusCode.ERROR))
        self._finish(span, call, end_ns, offset_ns)
        return format_trace_id(span.get_span_context().trace_id)

    async def close(self, grace_s: float) -> None:
        """Sends what is there, for at most `grace_s`."""
        if self._questions:
            await asyncio.wait(self._questions, timeout=grace_s)
        await asyncio.to_thread(self._spans.close, grace_s)

    def _finish(self, span: Span, call: CallRecord, end_ns: int, offset_ns: int) -> None:
        """Adds what was decided about the request; the engine is asked after the call is over."""
        request = call.request
        if request is None or not request.was_sent_on or len(self._questions) >= MAX_QUESTIONS:
            _end(span, () if request is None else request.decisions, end_ns, offset_ns)
            return
        question = asyncio.create_task(
            self._ask_and_end(span, call, request.decisions, end_ns, offset_ns),
            name="trace-explain",
        )
        self._questions.add(question)
        question.add_done_callback(self._questions.discard)

    async def _ask_and_end(
        self,
        span: Span,
        call: CallRecord,
        decisions: tuple[Decision, ...],
        end_ns: int,
        offset_ns: int,
    ) -> None:
        try:
            # Without an answer, what the front knows has to do.
            with suppress(OmniServeError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    found = await self._explain(call.request_id)
                # Another request may go by the same id by now, and has another beginning.
                if any(each.at_s == decisions[0].at_s for each in found):
                    decisions = found
        finally:
            _end(span, decisions, end_ns, offset_ns)


def _end(span: Span, decisions: tuple[Decision, ...], end_ns: int, offset_ns: int) -> None:
    for at_s, name, attributes in events_of(decisions):
        span.add_event(name, dict(attributes), timestamp=offset_ns + round(at_s * 1e9))
    span.end(end_ns)
