"""Where gRPC calls end in errors: one interceptor turns exceptions into statuses."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from omniserve.api.grpc_handlers import Context, Handler, rewrapped
from omniserve.calls.call_record import current_call
from omniserve.errors import InvalidRequest, OmniServeError, retry_after_s_of, status_of
from omniserve.logs import get_logger, log_event

_logger = get_logger(__name__)

OUR_METHODS = "/omniserve."
MAX_MESSAGE_CHARS = 1000
"""It goes out twice, beside other things, and clients take 8 KiB of all that."""
LAST_WORD_S = 1.0
"""So long a call stays until the client has taken its error."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of ours, so that servicers may simply raise."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OUR_METHODS):
            return handler
        return rewrapped(handler, _reporting_errors)


def _reporting_errors(behaviour: Handler) -> Handler:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            try:
                async with asyncio.timeout(LAST_WORD_S):
                    await _abort(context, error)
            except TimeoutError:
                # The status waits behind messages that nobody reads, and goes on without us.
                raise asyncio.CancelledError from None

    return call


async def _abort(context: Context, error: Exception) -> NoReturn:
    current_call().fail(error)
    name, _ = status_of(error)
    if isinstance(error, OmniServeError):
        message = str(error)[:MAX_MESSAGE_CHARS]
    else:
        message = "internal error; see the server's log"
        log_event(_logger, "grpc_call_failed", level=logging.ERROR, error=error)
    status = status_pb2.Status(
        code=grpc.StatusCode[name].value[0],
        message=message,
        details=[_packed(detail) for detail in _details(error)],
    )
    await context.abort_with_status(rpc_status.to_status(status))


def _details(error: Exception) -> list[Message]:
    metadata = {
        "param": error.param if isinstance(error, InvalidRequest) else None,
        "request_id": error.request_id if isinstance(error, OmniServeError) else None,
    }
    info = error_details_pb2.ErrorInfo(
        reason="".join(f"_{c}" if c.isupper() else c for c in type(error).__name__).upper()[1:],
        domain="omniserve",
        metadata={key: value for key, value in metadata.items() if value},
    )
    retry_after_s = retry_after_s_of(error)
    if retry_after_s is None:
        return [info]
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(1e3 * retry_after_s))
    return [info, error_details_pb2.RetryInfo(retry_delay=delay)]


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
