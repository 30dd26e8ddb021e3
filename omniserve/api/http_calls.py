"""Follows HTTP requests, for the log, the counts and the traces."""

from collections.abc import Iterable
from http import HTTPMethod

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omniserve.calls.call_log import CallLog
from omniserve.calls.call_record import CLIENT_CLOSED_REQUEST, CallRecord
from omniserve.config_values import join_address

_API_PREFIX = "/v1/"
_API_PATHS = frozenset({"/v1/models", "/v1/completions", "/v1/chat/completions"})
_METHODS = frozenset(HTTPMethod)


class CallLayer:
    """An ASGI application around another one, which must have routes of Starlette."""

    def __init__(self, app: ASGIApp, calls: CallLog) -> None:
        self._app = app
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = CallRecord("http", _peer(scope.get("client")))
        _note_headers(record, scope["headers"])
        status: int = CLIENT_CLOSED_REQUEST

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._calls.following(record):
            try:
                await self._app(scope, receive, noting_send)
            finally:
                path = _path(scope)
                record.method = f"{_known_method(scope['method'])} {path}".rstrip()
                record.is_routine |= not path.startswith(_API_PREFIX)
                record.status = str(status)


def _peer(client: tuple[str, int] | None) -> str:
    """Empty over a unix socket."""
    return "" if client is None else join_address(*client)


def _note_headers(record: CallRecord, headers: Iterable[tuple[bytes, bytes]]) -> None:
    for name, value in headers:
        record.note_header(name.decode("latin-1"), value.decode("latin-1"))


def _path(scope: Scope) -> str:
    """Of the route that took the request: what a client calls a model, say, is not part of it."""
    route = scope.get("route")
    if isinstance(route, Route):
        return route.path
    # Refused before there was a route.
    path: str = scope["path"]
    return path if path in _API_PATHS else ""


def _known_method(method: str) -> str:
    return method if method in _METHODS else "other"
