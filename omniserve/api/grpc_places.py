"""Places of a gRPC server: for tenants, whoever else connects, and for calls that say something."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from omniserve.api.grpc_errors import OUR_METHODS, Context, Handler

MAX_OPEN_CALLS = 64
"""Health checks and reflection at the same time: whoever connects may hold them for ever."""
MESSAGE_S = 60.0
"""How long the one message of a call may take to arrive."""


class PlaceInterceptor(grpc.aio.ServerInterceptor):
    """Goes outside of all others. Calls of ours have `max_calls` places, those that need no token
    have others: they cannot keep a tenant out."""

    def __init__(self, max_calls: int, message_s: float = MESSAGE_S) -> None:
        self._message_s = message_s
        self._num_free = {True: max_calls, False: MAX_OPEN_CALLS}
        """By whether the method is one of ours."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        is_ours = handler_call_details.method.startswith(OUR_METHODS)
        if not self._num_free[is_ours]:
            return grpc.stream_stream_rpc_method_handler(_refuse)
        # The task of the whole call, which outlives its handler.
        task = asyncio.current_task()
        assert task is not None
        self._num_free[is_ours] -= 1
        task.add_done_callback(lambda _: self._give_back(is_ours))
        handler = await continuation(handler_call_details)
        if handler is None or not is_ours or handler.request_streaming:
            return handler
        # As streams of requests: grpc itself would wait for the message without end.
        wrap, behaviour = grpc.stream_unary_rpc_method_handler, handler.unary_unary
        if handler.response_streaming:
            wrap, behaviour = grpc.stream_stream_rpc_method_handler, handler.unary_stream
        return wrap(
            self._reading(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _reading(self, behaviour: Handler) -> Handler:
        async def call(requests: Any, context: Context) -> Any:
            try:
                async with asyncio.timeout(self._message_s):
                    request = await context.read()
            except TimeoutError:
                problem = f"the message did not arrive within {self._message_s:g} s"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, problem)
            if request is grpc.aio.EOF:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is missing")
            return await behaviour(request, context)

        return call

    def _give_back(self, is_ours: bool) -> None:
        self._num_free[is_ours] += 1


async def _refuse(requests: object, context: Context) -> None:
    """Waits for no message."""
    problem = "Concurrent RPC limit exceeded!"
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
