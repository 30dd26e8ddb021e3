"""What remains of every call: a line in the log, a count, and a span where traces are made."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Protocol

from omniserve.calls.call_record import CLIENT_CLOSED_REQUEST, CallRecord, in_call
from omniserve.calls.line_limit import LineLimit
from omniserve.calls.outcome import outcome_of
from omniserve.calls.refusal_reason import RefusalReason, refusal_reason
from omniserve.calls.request_summary import RequestSummary
from omniserve.errors import OmniServeError, Unauthenticated
from omniserve.logs import Value, get_logger, log_event
from omniserve.metrics import Metrics, Outcome

_logger = get_logger(__name__)

STRANGERS_BURST, STRANGERS_PER_S = 20, 1.0
"""Lines about refused calls that anybody can make, as many as he likes: without a known token, or
of what needs none."""

_ADMIN = "Admin."
"""Methods of that service begin so."""


class Tracer(Protocol):
    """Makes spans of calls that have ended."""

    def record(self, call: CallRecord) -> str:
        """The id of the trace that the call is part of; empty where it is not traced."""


class RefusalBoard(Protocol):
    """Shows operators what was refused of late."""

    def note_refusal(
        self, error: BaseException, *, request_id: str = "", tenant: str = ""
    ) -> None: ...


class CallLog:
    """Of one daemon, for all its servers."""

    def __init__(
        self,
        metrics: Metrics,
        board: RefusalBoard | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`board` shows calls that were refused before they were a request, of known callers.

        `clock` is the one of the calls' arrivals.
        """
        self._metrics = metrics
        self._board = board
        self._clock = clock
        self._tracer: Tracer | None = None
        self._strangers = LineLimit(STRANGERS_BURST, STRANGERS_PER_S, clock)

    def trace_to(self, tracer: Tracer) -> None:
        """Calls that end from now on are traced, except those that only look."""
        self._tracer = tracer

    @contextmanager
    def following(self, call: CallRecord) -> Iterator[None]:
        """The call runs in this block. It must have its method and status when it leaves it."""
        try:
            with in_call(call):
                yield
        except BaseException as error:
            call.fail(error)
            raise
        finally:
            self._close(call)

    def _close(self, call: CallRecord) -> None:
        reason = _reason(call)
        self._metrics.calls.labels(call.protocol, call.method, call.status).inc()
        if reason is not None:
            self._metrics.refusals.labels(reason).inc()
        is_stranger = isinstance(call.error, Unauthenticated)
        # An operator who mistypes has not been refused service.
        is_service = not call.method.startswith(_ADMIN) and not is_stranger
        if call.request is None and isinstance(call.error, OmniServeError) and is_service:
            self._show_refusal(call, call.error)
        is_quiet = call.is_routine and call.error is None
        needs_no_token = is_stranger or (call.is_routine and call.error is not None)
        num_left_out = self._strangers.take() if needs_no_token else 0
        if num_left_out is None:
            # Nor are they traced: whoever connects could fill the queue of spans.
            return
        trace_id = "" if is_quiet else self._trace(call)
        log_event(
            _logger,
            "request",
            level=logging.DEBUG if is_quiet else logging.INFO,
            content=_content(call.request),
            error=None,
            **_fields(call, reason, trace_id, self._clock() - call.arrival_s),
            **({"left_out": num_left_out} if num_left_out else {}),
        )

    def _show_refusal(self, call: CallRecord, error: OmniServeError) -> None:
        if self._board is not None:
            self._board.note_refusal(error, request_id=call.request_id, tenant=call.tenant)

    def _trace(self, call: CallRecord) -> str:
        try:
            return "" if self._tracer is None else self._tracer.record(call)
        except Exception as error:
            # Whatever is wrong with a trace, the call has been answered.
            log_event(_logger, "tracing_failed", level=logging.WARNING, error=error)
            return ""


def _fields(
    call: CallRecord, reason: RefusalReason | None, trace_id: str, duration_s: float
) -> dict[str, Value]:
    summary = call.request
    found: dict[str, Value] = {
        "request_id": call.request_id,
        "tenant": call.tenant,
        "protocol": call.protocol,
        "method": call.method,
        "status": call.status,
        "peer": call.peer,
        "outcome": _outcome(call, reason),
        "reason": reason,
        **({} if summary is None else _summary_fields(summary)),
        "duration_ms": _milliseconds(duration_s),
        "trace_id": trace_id,
    }
    # What does not apply would only make lines longer.
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _reason(call: CallRecord) -> RefusalReason | None:
    reason = refusal_reason(call.error)
    if reason is not None:
        return reason
    if call.request is not None and call.request.outcome == "late":
        # A deadline of gRPC ends the call by cancelling it.
        return "deadline"
    is_clients_fault = (
        call.status.isdigit() and HTTPStatus.BAD_REQUEST <= int(call.status) < CLIENT_CLOSED_REQUEST
    )
    return "invalid" if is_clients_fault else None


def _outcome(call: CallRecord, reason: RefusalReason | None) -> Outcome:
    if call.request is not None:
        return call.request.outcome
    if call.is_declined:
        return "refused"
    # No path, no method, no JSON: errors of HTTP that are none of ours.
    return "invalid" if reason == "invalid" else outcome_of(call.error)


def _summary_fields(summary: RequestSummary) -> dict[str, Value]:
    usage = summary.usage
    return {
        "model": summary.model,
        "tier": summary.tier,
        "fallback": summary.fallback,
        "prompt_tokens": usage.num_prompt_tokens,
        "cached_tokens": usage.num_cached_tokens,
        "output_tokens": usage.num_output_tokens,
        "piggybacked_tokens": usage.num_piggybacked_tokens,
        "ttft_ms": _milliseconds(summary.ttft_s),
        "tpot_ms": _milliseconds(summary.tpot_s),
        "e2e_ms": _milliseconds(summary.e2e_s),
    }


def _content(summary: RequestSummary | None) -> dict[str, object]:
    if summary is None:
        return {}
    return {"prompts": summary.prompts, "outputs": summary.outputs}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
