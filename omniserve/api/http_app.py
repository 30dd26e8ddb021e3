"""Routes of the HTTP server."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from omniserve.access.caller import Caller
from omniserve.api.http_access import AccessLayer, caller_of
from omniserve.api.http_calls import CallLayer
from omniserve.api.http_errors import error_response
from omniserve.api.http_generation import GenerationResponse
from omniserve.api.http_limits import RequestLimit
from omniserve.api.http_local_names import LocalNamesOnly
from omniserve.api.http_monitoring import health_route
from omniserve.api.http_strangers import StrangersLeave
from omniserve.api.openai_requests import ChatBody, CompletionBody, GenerationBody, RequestHead
from omniserve.api.openai_responses import ChatFormat, CompletionFormat, to_json
from omniserve.calls.call_record import current_call
from omniserve.errors import OmniServeError
from omniserve.request_checks import shown_request_id
from omniserve.service import GenerationService, new_request_id

LARGE_BODY_BYTES = 64 << 10
MAX_DISCARDED_BYTES = 64 << 20
"""Up to here a body that is too large is read on: few clients take an answer before that."""
MAX_LENGTH_DIGITS = 19
"""Of an announced length; longer ones are too large, and very long ones no number for Python."""
BODY_TIMEOUT_S = 60
TIER_HEADER = "x-omniserve-tier"
TENANT_HEADER = "x-omniserve-tenant"
REQUEST_ID_HEADER = "x-request-id"


def create_app(service: GenerationService, others: Sequence[Route] = ()) -> ASGIApp:
    """The ASGI application for a service, with other routes beside its own."""
    endpoints = _Endpoints(service)
    routes = answering(
        [
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
            health_route(service),
            *others,
        ]
    )
    limited = RequestLimit(routes, service.config.limits.max_requests)
    known = AccessLayer(limited, service.access)
    # Where nobody shows a token, the name is all that tells a page of another site.
    app = LocalNamesOnly(known) if service.access.is_open else StrangersLeave(known)
    return CallLayer(app, service.calls)


def answering(routes: Sequence[Route]) -> ASGIApp:
    """Routes, with an answer to whatever they raise."""
    app = Starlette(
        routes=routes,
        exception_handlers={
            OmniServeError: error_response,
            HTTPException: error_response,
            Exception: error_response,
        },
    )
    # What Starlette would send in place of 404 fails for some query strings.
    app.router.redirect_slashes = False
    return _Quiet(app)


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
            caller=caller_of(request).claiming(request.headers.get(TENANT_HEADER, "")),
            request_id=request.headers.get(REQUEST_ID_HEADER) or new_request_id(),
            arrival_s=time.monotonic(),
        )
        current_call().request_id = shown_request_id(head.request_id)
        request.state.request_id = current_call().request_id
        _check_content_type(request)
        raw = await _read_body(request, self._service.config.limits.max_message_bytes)
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
        caller = caller_of(request)
        table = self._service.models
        names = [each for name in table.allowed(caller) for each in (name, *table.aliases(name))]
        return _json({"object": "list", "data": [self._model(name, caller) for name in names]})

    async def model(self, request: Request) -> Response:
        return _json(self._model(request.path_params["name"], caller_of(request)))

    def _model(self, name: str, caller: Caller) -> dict[str, object]:
        info = self._service.model_info(name, caller)
        return {
            "id": name,
            # What an alias means, in a field of vLLM's.
            "root": info.name,
            "object": "model",
            "created": self._created,
            "owned_by": "omniserve",
            "max_model_len": info.max_model_len,
        }


def _json(body: object, status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")


def _check_content_type(request: Request) -> None:
    """Refuses what a web page may send anywhere without asking: forms, plain text, and what does
    not say what it is."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.split(";", 1)[0].strip().lower()
    if kind != "application/json":
        message = f"content-type: {kind[:64]!r} is not served; allowed: application/json"
        raise HTTPException(415, message)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body; HTTPException where it is too large or too slow."""
    max_read_bytes = max(max_bytes, MAX_DISCARDED_BYTES)
    if _announces_more(request, max_read_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes <= max_bytes:
                    body += part
                elif num_bytes > max_read_bytes:
                    break
    except TimeoutError:
        message = f"the body did not arrive within {BODY_TIMEOUT_S} s"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message) from None
    except ClientDisconnect:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the connection was closed") from None
    if num_bytes > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


def _announces_more(request: Request, max_bytes: int) -> bool:
    announced = request.headers.get("content-length", "").lstrip("0")
    if not announced.isdecimal():
        return False
    return len(announced) > MAX_LENGTH_DIGITS or int(announced) > max_bytes


def _too_large(max_bytes: int) -> HTTPException:
    message = f"the body is too large; allowed: {max_bytes} bytes"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
