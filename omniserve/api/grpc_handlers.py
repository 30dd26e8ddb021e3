"""Handlers of gRPC methods with something around what they do."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]

_WRAPS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests, and answers, come as streams."""


def rewrapped(handler: Any, around: Callable[[Handler], Handler]) -> Any:
    """The same method, which does what `around` makes of what it did."""
    return _wrapped(handler, around, handler.request_streaming)


def reading_for_itself(handler: Any, around: Callable[[Handler], Handler]) -> Any:
    """Likewise, of a method that takes one request: what is around has to read that."""
    return _wrapped(handler, around, True)


def refusal(behaviour: Handler) -> Any:
    """In place of any method: waits for no message and parses none."""
    return grpc.stream_stream_rpc_method_handler(behaviour)


def _wrapped(handler: Any, around: Callable[[Handler], Handler], has_stream: bool) -> Any:
    of_one = handler.unary_unary or handler.unary_stream
    behaviour = of_one or handler.stream_unary or handler.stream_stream
    return _WRAPS[has_stream, handler.response_streaming](
        around(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
