"""Who calls over HTTP: one layer around all routes."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from omniserve.access.access_control import AccessControl
from omniserve.access.caller import Caller
from omniserve.api.http_errors import error_response
from omniserve.calls.call_record import current_call
from omniserve.errors import Unauthenticated

OPEN_PATHS = frozenset({"/health"})
"""That need no token: load balancers have none."""
_AUTHORIZATION = b"authorization"
_CALLER = "caller"


class AccessLayer:
    """An ASGI application around another one, which it calls for known callers only.

    It decides by the headers, before anything of the body is read.
    """

    def __init__(self, app: ASGIApp, access: AccessControl) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                caller = self._access.caller(_authorization(scope))
            except Unauthenticated as error:
                response = await error_response(Request(scope), error)
                await response(scope, receive, send)
                return
            current_call().tenant = caller.tenant
            scope.setdefault("state", {})[_CALLER] = caller
        await self._app(scope, receive, send)


def caller_of(request: Request) -> Caller:
    """Of a request that has come through the layer, on a path that is not open."""
    caller = request.scope["state"][_CALLER]
    assert isinstance(caller, Caller)
    return caller


def _authorization(scope: Scope) -> list[str]:
    """All values of the header; there should be one."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == _AUTHORIZATION]
