"""Keeps what asks for no token from other sites that a browser on this machine has open."""

from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from omniserve.api.http_errors import error_response

MISDIRECTED = 421


class LocalNamesOnly:
    """Refuses requests that call this machine by a name which somebody else could have given it.

    A site may let its own name point here, and its pages then send what they like and read what the
    browser gets. They cannot make an address or `localhost` their name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Browsers always send one; what sends none is no page of a site.
        hosts = Headers(scope=scope).getlist("host") if scope["type"] == "http" else []
        foreign = [host for host in hosts if not is_local_name(host)]
        if not foreign:
            await self._app(scope, receive, send)
            return
        shown = repr(foreign[0][:128])
        message = f"host: {shown} is not served; ask for the address itself or localhost"
        response = await error_response(Request(scope), HTTPException(MISDIRECTED, message))
        await response(scope, receive, send)


def is_local_name(host: str) -> bool:
    """Of a Host header: whether it is an address or localhost, with a port or without."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    if name.lower() in ("", "localhost"):
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
