"""Places of a gRPC server: for tenants, whoever else connects, and for calls that say something."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from omniserve.access.call_places import CallPlaces
from omniserve.api.grpc_errors import OUR_METHODS
from omniserve.api.grpc_handlers import Context, Handler, reading_for_itself, refusal
from omniserve.calls.call_record import current_call
from omniserve.errors import DeadlineExceeded, InvalidRequest, Overloaded

MAX_OPEN_CALLS = 64
"""Watched health and reflection at the same time: whoever connects may hold them for ever. As many
checks of health, which end at once, have places of their own."""
_CHECK = "/grpc.health.v1.Health/Check"
MESSAGE_S = 60.0
"""How long the one message of a call may take to arrive."""


class PlaceInterceptor(grpc.aio.ServerInterceptor):
    """Goes inside of all others, which follow and answer what it refuses. Calls of ours have
    `max_calls` places, those that need no token have others: they cannot keep a tenant out."""

    def __init__(self, max_calls: int, message_s: float = MESSAGE_S) -> None:
        self._message_s = message_s
        self._ours = CallPlaces(max_calls)
        self._checks = CallPlaces(MAX_OPEN_CALLS)
        self._others = CallPlaces(MAX_OPEN_CALLS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if method.startswith(OUR_METHODS):
            # grpc itself would wait for the message without end.
            return reading_for_itself(handler, self._placed)
        try:
            _take(self._checks if method == _CHECK else self._others)
        except Overloaded:
            return refusal(_refuse)
        return handler

    def _placed(self, behaviour: Handler) -> Handler:
        async def call(requests: Any, context: Context) -> Any:
            try:
                _take(self._ours, current_call().tenant)
            except Overloaded:
                # Who sends very many of them does not fill the log.
                current_call().is_routine = True
                raise
            return await behaviour(await self._message(context), context)

        return call

    async def _message(self, context: Context) -> Any:
        try:
            async with asyncio.timeout(self._message_s):
                message = await context.read()
        except TimeoutError:
            problem = f"the message did not arrive within {self._message_s:g} s"
            raise DeadlineExceeded(problem) from None
        except DecodeError:
            problem = "the message is not valid protobuf of this method"
            raise InvalidRequest(problem) from None
        if message is grpc.aio.EOF:
            raise InvalidRequest("the message is missing")
        return message


def _take(places: CallPlaces, tenant: str = "") -> None:
    """Until the call's task ends, after its handler; raises Overloaded."""
    task = asyncio.current_task()
    assert task is not None
    places.take(tenant)
    task.add_done_callback(lambda _: places.free(tenant))


async def _refuse(requests: object, context: Context) -> None:
    """Of methods that are not ours, and not followed."""
    problem = f"{MAX_OPEN_CALLS} such calls are being answered; no more are taken"
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
