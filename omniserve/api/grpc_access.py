"""Who calls over gRPC: one interceptor before all methods of ours."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc
import grpc.aio

from omniserve.access.access_control import AccessControl
from omniserve.access.caller import Caller
from omniserve.api.grpc_errors import OUR_METHODS
from omniserve.api.grpc_handlers import Context, Handler, refusal, rewrapped
from omniserve.calls.call_record import current_call
from omniserve.errors import Unauthenticated

_AUTHORIZATION = "authorization"

_caller: ContextVar[Caller] = ContextVar("omniserve_caller")


def current_caller() -> Caller:
    """Of the call that this code runs for. Outside of one that was let in there is none."""
    return _caller.get()


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Goes inside of ErrorInterceptor, which tells the client. Health checks and reflection are not
    ours: they need no token."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OUR_METHODS):
            return handler
        try:
            caller = self._access.caller(_authorization(handler_call_details))
        except Unauthenticated as error:
            # Nothing that a stranger sends is parsed, or waited for, which would take up a place.
            return refusal(_refusing(error))
        return rewrapped(handler, partial(_calling_as, caller))


def _calling_as(caller: Caller, behaviour: Handler) -> Handler:
    async def call(request: Any, context: Context) -> Any:
        # Each call is a task of its own, so that this ends with it.
        _caller.set(caller)
        current_call().tenant = caller.tenant
        return await behaviour(request, context)

    return call


def _refusing(error: Unauthenticated) -> Handler:
    async def call(request: Any, context: Context) -> Any:
        raise error

    return call


def _authorization(details: grpc.HandlerCallDetails) -> list[str]:
    """All values of the metadata key; there should be one."""
    return [
        value
        for key, value in details.invocation_metadata or ()
        if key == _AUTHORIZATION and isinstance(value, str)
    ]
