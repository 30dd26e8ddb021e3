"""Routes of the HTTP server."""

import asyncio
import contextlib
import time
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from omniserve.api.http_errors import error_response
from omniserve.api.http_generation import GenerationResponse
from omniserve.api.openai_requests import ChatBody, CompletionBody, GenerationBody, RequestHead
from omniserve.api.openai_responses import ChatFormat, CompletionFormat, to_json
from omniserve.errors import OmniServeError
from omniserve.metrics import CONTENT_TYPE
from omniserve.service import MAX_REQUEST_ID_CHARS, GenerationService, new_request_id

MAX_BODY_BYTES = 8 << 20
LARGE_BODY_BYTES = 64 << 10
MAX_DISCARDED_BYTES = 64 << 20
"""Up to here a body that is too large is read on: few clients take an answer before that."""
BODY_TIMEOUT_S = 60
TIER_HEADER = "x-omniserve-tier"
TENANT_HEADER = "x-omniserve-tenant"
REQUEST_ID_HEADER = "x-request-id"


def create_app(service: GenerationService) -> ASGIApp:
    """The ASGI application for a service."""
    endpoints = _Endpoints(service)
    routes = Starlette(
        routes=[
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
        ],
        exception_handlers={
            OmniServeError: error_response,
            HTTPException: error_response,
            Exception: error_response,
        },
    )
    return _Quiet(routes)


class _Quiet:
    """Keeps an exception that is answered and logged already from being logged again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(Exception):
            await self._app(scope, receive, send)


class _Endpoints:
    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._created = int(time.time())

    async def completions(self, request: Request) -> GenerationResponse:
        return await self._generate(request, CompletionBody, CompletionFormat)

    async def chat_completions(self, request: Request) -> GenerationResponse:
        return await self._generate(request, ChatBody, ChatFormat)

    async def _generate(
        self,
        request: Request,
        body_class: type[GenerationBody],
        make_format: type[CompletionFormat] | type[ChatFormat],
    ) -> GenerationResponse:
        head = RequestHead(
            tier=request.headers.get(TIER_HEADER),
            tenant=request.headers.get(TENANT_HEADER, ""),
            request_id=request.headers.get(REQUEST_ID_HEADER) or new_request_id(),
            arrival_s=time.monotonic(),
        )
        shown_id = head.request_id[:MAX_REQUEST_ID_CHARS]
        request.state.request_id = shown_id if shown_id.isprintable() else ""
        _check_content_type(request)
        raw = await _read_body(request)
        # A long parse must not hold up the streams of other clients.
        is_large = len(raw) > LARGE_BODY_BYTES
        body = await asyncio.to_thread(body_class.parse, raw) if is_large else body_class.parse(raw)
        return GenerationResponse(
            self._service,
            body.to_request(head),
            make_format,
            is_stream=bool(body.stream),
            usage_events=body.usage_events,
        )

    async def models(self, request: Request) -> Response:
        models = [self._model(model.name) for model in self._service.config.models]
        return _json({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        return _json(self._model(request.path_params["name"]))

    def _model(self, name: str) -> dict[str, object]:
        info = self._service.model_info(name)
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "omniserve",
            "max_model_len": info.max_model_len,
        }

    async def health(self, request: Request) -> Response:
        """200 only where a request would be accepted."""
        is_serving = self._service.is_serving
        status = HTTPStatus.OK if is_serving else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"state": self._service.state}, status)

    async def metrics(self, request: Request) -> Response:
        headers = {"content-type": CONTENT_TYPE}
        return Response(self._service.metrics.exposition(), headers=headers)


def _json(body: object, status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")


def _check_content_type(request: Request) -> None:
    """Refuses what a web page may send anywhere without asking: forms and plain text."""
    content_type = request.headers.get("content-type", "application/json")
    kind = content_type.split(";", 1)[0].strip().lower()
    if kind != "application/json":
        message = f"content-type: {kind[:64]!r} is not served; allowed: application/json"
        raise HTTPException(415, message)


async def _read_body(request: Request) -> bytes:
    """The whole body; HTTPException where it is too large or too slow."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_DISCARDED_BYTES:
        raise _too_large()
    body = bytearray()
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes <= MAX_BODY_BYTES:
                    body += part
                elif num_bytes > MAX_DISCARDED_BYTES:
                    break
    except TimeoutError:
        message = f"the body did not arrive within {BODY_TIMEOUT_S} s"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message) from None
    except ClientDisconnect:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the connection was closed") from None
    if num_bytes > MAX_BODY_BYTES:
        raise _too_large()
    return bytes(body)


def _too_large() -> HTTPException:
    message = f"the body is too large; allowed: {MAX_BODY_BYTES} bytes"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
