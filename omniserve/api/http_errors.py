"""OpenAI-shaped errors for whatever goes wrong over HTTP."""

import logging
from http import HTTPStatus
from math import ceil

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from omniserve.api.openai_responses import to_json
from omniserve.calls.call_record import current_call
from omniserve.errors import (
    InvalidRequest,
    OmniServeError,
    Overloaded,
    Unauthenticated,
    UnknownModel,
    retry_after_s_of,
    status_of,
)
from omniserve.logs import get_logger, log_event

_logger = get_logger(__name__)


def error_body(error: Exception) -> tuple[int, bytes]:
    """HTTP status and JSON body of an exception; logs what nobody expected."""
    current_call().fail(error)
    if isinstance(error, HTTPException):
        return error.status_code, _body(error.status_code, error.detail, None, None)
    _, status = status_of(error)
    if not isinstance(error, OmniServeError):
        log_event(_logger, "http_request_failed", level=logging.ERROR, error=error)
        return status, _body(status, "internal error; see the server's log", None, None)
    param = error.param if isinstance(error, InvalidRequest) else None
    if isinstance(error, Overloaded):
        return status, _body(status, str(error), None, "rate_limit_exceeded", "rate_limit_error")
    code = "model_not_found" if isinstance(error, UnknownModel) else None
    if isinstance(error, UnknownModel):
        param = "model"
    return status, _body(status, str(error), param, code)


async def error_response(request: Request, error: Exception) -> Response:
    """Starlette's hook for every exception that leaves an endpoint."""
    status, body = error_body(error)
    headers = dict(getattr(error, "headers", None) or {})
    # What is wrong before there is a request has the id that this one would have got.
    request_id = getattr(error, "request_id", "") or getattr(request.state, "request_id", "")
    if request_id:
        headers["x-request-id"] = request_id.encode("latin-1", "replace").decode("latin-1")
    retry_after_s = retry_after_s_of(error)
    if retry_after_s is not None:
        # The standard header knows whole seconds only; clients of OpenAI read the other first.
        headers["retry-after"] = str(ceil(retry_after_s))
        headers["retry-after-ms"] = str(ceil(1e3 * retry_after_s))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        # The rest of the body is not going to be read.
        headers["connection"] = "close"
    return Response(body, status, headers, media_type="application/json")


def _body(
    status: int, message: str, param: str | None, code: str | None, kind: str | None = None
) -> bytes:
    if kind is None:
        is_clients = status < HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "invalid_request_error" if is_clients else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return to_json({"error": error})
