"""How many HTTP requests are answered at the same time."""

from http import HTTPMethod

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from omniserve.api.full import all_taken
from omniserve.api.http_errors import error_response


class RequestLimit:
    """Refuses what costs something beyond a number; who looks whether all is well gets through."""

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != HTTPMethod.POST:
            await self._app(scope, receive, send)
            return
        if self._num_requests >= self._max_requests:
            response = await error_response(Request(scope), all_taken(self._max_requests))
            await response(scope, receive, send)
            return
        self._num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
