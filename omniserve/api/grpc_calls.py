"""Follows gRPC calls of ours, for the log, the counts and the traces."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from omniserve.api.grpc_errors import OUR_METHODS
from omniserve.api.grpc_handlers import Context, Handler, rewrapped
from omniserve.calls.call_log import CallLog
from omniserve.calls.call_record import CallRecord
from omniserve.errors import DeadlineExceeded, RequestCancelled, status_of

_ROUTINE = frozenset({"Admin.GetStatus", "Admin.WatchStatus"})


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The outermost of a server: it sees each call before anything is known of it, and last."""

    def __init__(self, calls: CallLog) -> None:
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or not path.startswith(OUR_METHODS):
            return handler
        return rewrapped(handler, partial(self._followed, _method(path)))

    def _followed(self, method: str, behaviour: Handler) -> Handler:
        async def call(request: Any, context: Context) -> Any:
            record = _record(context, method)
            with self._calls.following(record):
                try:
                    return await behaviour(request, context)
                except BaseException as error:
                    record.fail(error)
                    raise
                finally:
                    record.status = _status(record)

        return call


def _method(path: str) -> str:
    """`Inference.Generate` of `/omniserve.v1.Inference/Generate`; a handler was found for it."""
    service, _, method = path.rpartition("/")
    return f"{service.rpartition('.')[2]}.{method}"


def _record(context: Context, method: str) -> CallRecord:
    record = CallRecord("grpc", _peer(context.peer()), method=method)
    record.is_routine = method in _ROUTINE
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            record.note_header(key, value)
    return record


def _peer(target: str) -> str:
    """`127.0.0.1:4711` of `ipv4:127.0.0.1:4711`; the name of a unix socket as it is."""
    kind, separator, address = target.partition(":")
    return unquote(address) if separator and kind.startswith("ip") else target


def _status(record: CallRecord) -> str:
    if record.error is None:
        return "OK"
    summary = record.request
    if not isinstance(record.error, Exception):
        # A cancelled call, which is all that the server hears of a deadline, too.
        is_late = summary is not None and summary.outcome == "late"
        return status_of(DeadlineExceeded() if is_late else RequestCancelled())[0]
    return status_of(record.error)[0]
