"""The HTTP application as its server calls it, from method, headers and body to the last byte."""

import asyncio
import json
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from fuzz.byte_source import ByteSource
from fuzz.defects import (
    PLANTED_PROMPT,
    Defect,
    LogWatch,
    check,
    check_message,
    check_no_secret,
)
from fuzz.front_under_test import AUTHORIZATIONS, Front, make_fronts
from fuzz.json_mutation import keys_of, mutated, spliced
from fuzz.wild_values import wild_text
from omniserve.api.http_app import create_app
from omniserve.api.http_monitoring import metrics_route
from omniserve.api.openai_requests import ChatBody, CompletionBody
from omniserve.api.status_page.routes import status_routes

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PATHS = (
    *(COMPLETIONS, CHAT, COMPLETIONS, CHAT, COMPLETIONS, CHAT),
    *("/v1/models", "/v1/models/demo", "/health", "/", "/status.json", "/v1", ""),
)
BASES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {
        "model": "demo",
        "prompt": PLANTED_PROMPT,
        "max_tokens": 2,
        "stop": [PLANTED_PROMPT],
        "logit_bias": {"5": 1.5},
    },
    CHAT: {
        "model": "demo",
        "messages": [
            {"role": "system", "content": PLANTED_PROMPT},
            {"role": "user", "content": [{"type": "text", "text": PLANTED_PROMPT}]},
        ],
        "stream_options": {"include_usage": True},
        "stream": True,
    },
}
KEYS = sorted(
    {*keys_of(CompletionBody.model_json_schema()), *keys_of(ChatBody.model_json_schema())}
)
PIECES = (
    *("\\ud800", "\\u0000", '"', "{", "[", "}", "]", ",", "1e999", "NaN", "-", "\\", "\ufeff"),
    *("9" * 400, "[" * 300, '"model":"demo",', "/*", "null", "\x00", "true"),
)
CASE_S = 20.0
_GOOD_STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 429)


class Exchange:
    """One request and what came back. The client goes away after `num_receives` pieces."""

    def __init__(self, parts: list[bytes], num_receives: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        self.is_gone = asyncio.Event()
        self.problems: list[str] = []
        """Raised they would be taken for the application's own."""
        self._parts = parts
        self._num_receives = num_receives

    async def receive(self) -> Message:
        if self._parts:
            body = self._parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._parts)}
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._note(not self.is_complete, "a message after the last")
        if message["type"] == "http.response.start":
            self._note(self.status == 0, "two answers")
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in message["headers"]
            }
        else:
            self._note(self.status != 0, "a body before its status")
            self.body += message.get("body", b"")
            self.is_complete = not message.get("more_body", False)
        self._num_receives -= 1
        if self._num_receives <= 0:
            self.is_gone.set()
            # As a server does: whoever waits for it hears of it before the next piece.
            await asyncio.sleep(0)

    def _note(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


class HttpTarget:
    """Applications of an open front and of one with tenants, for all cases."""

    name = "http"

    def __init__(self, checkpoint: Path) -> None:
        self._log = LogWatch()
        self._loop = asyncio.new_event_loop()
        self.fronts = make_fronts(checkpoint)
        self._apps = [(front, _application(front)) for front in self.fronts]

    def run(self, data: bytes) -> None:
        """Raises Defect, or whatever the system under test lets out."""
        self._loop.run_until_complete(self._case(ByteSource(data)))

    def close(self) -> None:
        self._loop.close()

    async def _case(self, source: ByteSource) -> None:
        front, app = source.choice(self._apps)
        path = source.choice(PATHS)
        scope = _scope(path, source)
        exchange = Exchange(_parts(body_of(path, source), source), source.choice((1, 2, 3, 1000)))
        async with asyncio.timeout(CASE_S):
            await app(scope, exchange.receive, exchange.send)
        # First of all: it tells more than an answer.
        self._log.check()
        check(not exchange.problems, "; ".join(exchange.problems))
        if not exchange.is_gone.is_set():
            check(exchange.is_complete, f"no whole answer, status {exchange.status}")
        if exchange.is_complete:
            check_answer(exchange.status, exchange.headers, exchange.body)
        exchange.is_gone.set()
        await asyncio.sleep(0)
        front.check_idle()


def _application(front: Front) -> ASGIApp:
    routes = [metrics_route(front.service), *status_routes(front.reporter)]
    return create_app(front.service, routes)


def check_answer(status: int, headers: dict[str, str], body: bytes) -> None:
    """What every answer has to be like, whatever was asked."""
    check(status in _GOOD_STATUSES, f"status {status}: {body[:500]!r}")
    text = body.decode()
    check_no_secret(text)
    kind = headers.get("content-type", "")
    if status != 200:
        check(kind == "application/json", f"an error of type {kind!r}")
        _check_error(_json_of(text))
    elif kind.startswith("text/event-stream"):
        for event in text.split("\n\n")[:-1]:
            check(event.startswith("data: ") and "\n" not in event, f"a broken event: {event!r}")
            if event != "data: [DONE]":
                _json_of(event.removeprefix("data: "))
    elif kind.startswith("application/json"):
        _json_of(text)


def _check_error(answer: Any) -> None:
    error = answer["error"]
    check(set(error) == {"message", "type", "param", "code"}, f"an error of shape {set(error)}")
    check_message(error["message"])
    check(len(error["param"] or "") <= 256, "a long param")


def _json_of(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise Defect(f"not JSON: {text[:500]!r}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _scope(path: str, source: ByteSource) -> dict[str, Any]:
    method = source.choice(("POST", "POST", "POST", "POST", "GET", "PUT", "OPTIONS", "X"))
    if source.below(8) == 0:
        path += "/" + wild_text(source)
    authorization = source.choice((*AUTHORIZATIONS[:1] * 8, *AUTHORIZATIONS))
    headers = [(b"host", b"127.0.0.1:2"), (b"authorization", authorization.encode())]
    for name in ("content-type", "x-omniserve-tier", "x-omniserve-tenant", "x-request-id"):
        if source.below(8) == 0:
            value = wild_text(source).encode()
            headers.append((name.encode(), value.translate(None, b"\r\n\0")))
        elif name == "content-type":
            # Without it no body is looked at.
            headers.append((b"content-type", b"application/json"))
    if source.below(8) == 0:
        length = source.choice(("0", "1", "99999999999", "-1", "x", "\u00b2"))
        headers.append((b"content-length", length.encode("latin-1")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": source.take(source.below(8)),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }


def body_of(path: str, source: ByteSource) -> bytes:
    """Of a request to this path: valid but for a few changes, most often."""
    base = BASES.get(path)
    if base is None:
        return source.take(source.below(64))
    if source.below(16) == 0:
        return source.rest()
    data = mutated(base, KEYS, source)
    text = json.dumps(data, ensure_ascii=source.flag())
    if source.below(4) == 0:
        # A prompt that is taken for something else may be named as that.
        text = spliced(text.replace(PLANTED_PROMPT, "a prompt"), PIECES, source)
    return text.encode()


def _parts(body: bytes, source: ByteSource) -> list[bytes]:
    """As they may come from a socket; there is always one."""
    size = source.choice((1 << 30, 1 << 30, 100, 7))
    return [body[start : start + size] for start in range(0, len(body), size)] or [b""]
