"""What monitors ask over HTTP: whether all is well, and the metrics."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omniserve.api.openai_responses import to_json
from omniserve.metrics import CONTENT_TYPE
from omniserve.service import GenerationService


def health_route(service: GenerationService) -> Route:
    """200 only where a request would be accepted."""

    async def health(request: Request) -> Response:
        status = HTTPStatus.OK if service.is_serving else HTTPStatus.SERVICE_UNAVAILABLE
        body = to_json({"state": service.state})
        return Response(body, status, media_type="application/json")

    return Route("/health", health, methods=["GET"])


def metrics_route(service: GenerationService) -> Route:
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    return Route("/metrics", metrics, methods=["GET"])
