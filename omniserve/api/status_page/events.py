"""The status as server-sent events, one a second."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from omniserve.logs import get_logger, log_event
from omniserve.status.feed import StatusFeed, TooManyWatchers

MAX_WATCH_S = 600.0
"""Browsers come back by themselves; others have to say that they are still there."""
UNREAD_S = 15.0
"""A client that takes nothing for so long is given up."""
_RETRY = b"retry: 2000\n\n"

_logger = get_logger(__name__)


class StatusEvents:
    """An ASGI application. Every event holds a whole status, the first one at once."""

    def __init__(self, feed: StatusFeed, headers: Mapping[str, str]) -> None:
        self._feed = feed
        self._headers = [
            (name.encode(), value.encode())
            for name, value in {**headers, "content-type": "text/event-stream"}.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._feed.is_closed:
            raise HTTPException(503, "the server is shutting down; try again later")
        try:
            with self._feed.watch():
                await self._serve(scope, receive, send)
        except TooManyWatchers:
            raise HTTPException(503, "too many watch the status already; close a page") from None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if scope["method"] != "HEAD":
            duties = {
                asyncio.create_task(self._send_all(send), name="status-events"),
                asyncio.create_task(_gone(receive), name="status-events-client"),
            }
            try:
                await asyncio.wait(duties, timeout=MAX_WATCH_S, return_when="FIRST_COMPLETED")
            finally:
                for duty in duties:
                    duty.cancel()
                for ended in await asyncio.gather(*duties, return_exceptions=True):
                    _log_failure(ended)
        # Whoever reads nothing will not read this either.
        with suppress(TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                await send({"type": "http.response.body", "body": b""})

    async def _send_all(self, send: Send) -> None:
        """Until there will be no other, or the client stops reading."""
        part = _RETRY
        while not self._feed.is_closed:
            part += b"data: " + self._feed.newest + b"\n\n"
            async with asyncio.timeout(UNREAD_S):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            part = b""
            await self._feed.change()


def _log_failure(ended: BaseException | None) -> None:
    """All but how these duties end whenever a client leaves or takes nothing."""
    if ended is not None and not isinstance(ended, asyncio.CancelledError | TimeoutError):
        log_event(_logger, "status_events_failed", level=logging.ERROR, error=ended)


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
