"""Routes of the status page and its data."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omniserve.api.status_page.events import StatusEvents
from omniserve.status.reporter import StatusReporter

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/status/page.css": ("page.css", "text/css; charset=utf-8"),
    "/status/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/status/sections.js": ("sections.js", "text/javascript; charset=utf-8"),
    "/status/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/status/history.js": ("history.js", "text/javascript; charset=utf-8"),
    "/status/icon.svg": ("icon.svg", "image/svg+xml"),
}

SECURITY_HEADERS = {
    # Everything is a file of its own, so that nothing that is shown can ever run.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # A newer daemon at the same address has a newer page.
    "cache-control": "no-store",
}


def status_routes(reporter: StatusReporter) -> list[Route]:
    """The page at `/`, what it loads, `/status.json` and `/status/events`."""

    async def document(request: Request) -> Response:
        body = reporter.document()
        return Response(body, media_type="application/json", headers=SECURITY_HEADERS)

    page, events = files(__package__), StatusEvents(reporter.feed, SECURITY_HEADERS)
    return [
        *(
            Route(path, _file((page / name).read_bytes(), kind))
            for path, (name, kind) in _FILES.items()
        ),
        Route("/status.json", document),
        Route("/status/events", events, methods=["GET"]),
    ]


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers=SECURITY_HEADERS)

    return answer
