"""The HTTP server that clients use: OpenAI's API."""

from collections.abc import Sequence

from starlette.routing import Route

from omniserve.api.http_app import create_app
from omniserve.api.http_listener import HttpListener
from omniserve.api.http_monitoring import metrics_route
from omniserve.service import GenerationService
from omniserve.tls import Tls


class HttpServer(HttpListener):
    """Serves a GenerationService; to callers who need no token, also metrics and status page."""

    def __init__(
        self,
        service: GenerationService,
        address: str,
        tls: Tls | None = None,
        status_routes: Sequence[Route] = (),
    ) -> None:
        """`address` is host:port."""
        routes = [metrics_route(service), *status_routes] if service.access.is_open else []
        app = create_app(service, routes)
        super().__init__(app, address, "listen.http", service.config.limits, tls)
