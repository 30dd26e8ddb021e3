"""Who shows no token that is known does not keep a connection."""

import asyncio
import contextlib
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omniserve.api.http_access import OPEN_PATHS
from omniserve.api.http_connection import LINGER_S


class StrangersLeave:
    """An ASGI application around one that has tenants: with answers to anybody else, the
    connection ends.

    Otherwise they could hold all connections there may be, each for as long as one may be idle.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_last = False
        is_answered = False

        async def parting_send(message: Message) -> None:
            nonlocal is_last, is_answered
            if message["type"] == "http.response.start":
                is_last = _is_for_strangers(scope["path"], message["status"])
                if is_last:
                    MutableHeaders(scope=message)["connection"] = "close"
            elif is_last and not message.get("more_body", False):
                is_answered = True
                message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, receive, parting_send)
        if is_answered:
            # Outside of what the application limits: the request is none of those in work now.
            await _hear_out(receive)
            await send({"type": "http.response.body"})


def _is_for_strangers(path: str, status: int) -> bool:
    return status == HTTPStatus.UNAUTHORIZED or path in OPEN_PATHS


async def _hear_out(receive: Receive) -> None:
    """Takes what is on its way of the body: closed before that, the answer would be lost."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
