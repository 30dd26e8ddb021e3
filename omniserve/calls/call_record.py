"""What is known of one call of a client, from its first byte to its last."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from omniserve.calls.request_summary import RequestSummary

Protocol = Literal["grpc", "http"]

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""Headers of W3C Trace Context; metadata of the same names over gRPC."""
MAX_TRACE_HEADER_CHARS = 512
"""Nobody has to understand longer ones."""


@dataclass(slots=True)
class CallRecord:
    """Made where the call arrives; whoever learns something of it fills that in."""

    protocol: Protocol
    peer: str = ""
    """Address of the other end, as host:port."""
    arrival_s: float = field(default_factory=time.monotonic)
    trace_headers: dict[str, str] = field(default_factory=dict)
    method: str = ""
    """Of a fixed set, never the client's own words: `Inference.Generate`, `GET /v1/models`."""
    is_routine: bool = False
    """Whether somebody just looks, as monitors do again and again."""
    status: str = ""
    """What the client was told: name of the gRPC status, or number of the HTTP status."""
    tenant: str = ""
    request_id: str = ""
    error: BaseException | None = None
    is_declined: bool = False
    """The answer, which came as it should, says that what was asked for is not done."""
    request: RequestSummary | None = None
    """Of a call that generates, once that has ended."""

    def fail(self, error: BaseException) -> None:
        """The call ends with this error. The first counts: others follow from it."""
        if self.error is None:
            self.error = error

    def note_header(self, name: str, value: str) -> None:
        """Keeps the headers that place the call in a trace; `name` is in lower case."""
        if name in (TRACEPARENT, TRACESTATE) and len(value) <= MAX_TRACE_HEADER_CHARS:
            self.trace_headers.setdefault(name, value)


CLIENT_CLOSED_REQUEST = 499
"""HTTP status, in logs and metrics alone, of a call whose client went away before its answer."""

_current: ContextVar[CallRecord] = ContextVar("omniserve_call")


def current_call() -> CallRecord:
    """The call that this code runs for; outside of any, a record that nobody reads."""
    return _current.get(None) or CallRecord("grpc")


@contextmanager
def in_call(call: CallRecord) -> Iterator[None]:
    """Inside the block, and in tasks that it starts, `current_call` returns this one."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
