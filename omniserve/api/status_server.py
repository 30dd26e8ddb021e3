"""The HTTP server that operators use: status page and metrics."""

from collections.abc import Sequence

from starlette.routing import Route

from omniserve.api.http_app import answering
from omniserve.api.http_calls import CallLayer
from omniserve.api.http_listener import HttpListener
from omniserve.api.http_local_names import LocalNamesOnly
from omniserve.api.http_monitoring import health_route, metrics_route
from omniserve.service import GenerationService
from omniserve.tls import Tls


class StatusServer(HttpListener):
    """Whoever can connect sees what it has: only this machine can."""

    def __init__(
        self,
        service: GenerationService,
        address: str,
        tls: Tls | None = None,
        status_routes: Sequence[Route] = (),
    ) -> None:
        """`address` is host:port."""
        routes = [health_route(service), metrics_route(service), *status_routes]
        app = CallLayer(LocalNamesOnly(answering(routes)), service.calls)
        super().__init__(app, address, "listen.status", service.config.limits, tls)
