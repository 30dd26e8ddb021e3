"""How many HTTP requests are answered at the same time."""

from http import HTTPMethod

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from omniserve.access.call_places import CallPlaces
from omniserve.api.http_errors import error_response
from omniserve.calls.call_record import current_call
from omniserve.errors import Overloaded


class RequestLimit:
    """Refuses what costs something beyond a number; who looks whether all is well gets through.

    Goes inside of AccessLayer: strangers take no places.
    """

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._places = CallPlaces(max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != HTTPMethod.POST:
            await self._app(scope, receive, send)
            return
        call = current_call()
        try:
            self._places.take(call.tenant)
        except Overloaded as error:
            # Who sends very many of them does not fill the log.
            call.is_routine = True
            response = await error_response(Request(scope), error)
            await response(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._places.free(call.tenant)
