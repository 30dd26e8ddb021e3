"""Failed gRPC calls as the product's own errors, so that each has its message and exit status."""

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from omniserve.errors import (
    EngineUnavailable,
    InvalidRequest,
    OmniServeError,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)
from omniserve.terminal import printable

_OUR_DOMAIN = "omniserve"
_KINDS: dict[grpc.StatusCode, type[OmniServeError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAVAILABLE: EngineUnavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
# A server that stops cancels what still runs, and may say no more of it than that.
_GONE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def error_of_call(error: grpc.RpcError, address: str) -> OmniServeError:
    """What to raise for a call to `address` that failed.

    What the server itself says is passed on as it is; for the rest the message names the address.
    """
    assert isinstance(error, grpc.Call)
    code, text = error.code(), printable(error.details() or "")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in _details(error):
        for message in (info, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    if info.domain != _OUR_DOMAIN:
        return _of_the_connection(code, text, address)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # 0 where nothing is said: there is nothing that it would have to wait for.
        delay_s = retry.retry_delay.ToTimedelta().total_seconds()
        return Overloaded(text, delay_s)
    return _KINDS.get(code, OmniServeError)(text)


def _details(error: grpc.Call) -> list[Any]:
    """None where what stands there is not what it should be: nobody knows who listens."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return []
    return [] if status is None else list(status.details)


def _of_the_connection(code: grpc.StatusCode, text: str, address: str) -> OmniServeError:
    """For answers that are not the product's own: of grpc, or of whoever else listens there."""
    said = f"gRPC {code.name}: {text}"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return OmniServeError(f"{address} does not serve this, is it the right address? {said}")
    if code in _GONE:
        return EngineUnavailable(f"{address} does not answer: {said}")
    return _KINDS.get(code, OmniServeError)(f"{address} does not answer as it should: {said}")
