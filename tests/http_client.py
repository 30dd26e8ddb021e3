"""Requests over HTTP and what every answer has to look like."""

import json
from pathlib import Path
from typing import Any

import httpx2
from api_servers import serving
from service_builders import make_service

USER = [{"role": "user", "content": "Hello"}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PATIENCE_S = 30.0


def make_body(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": "Hello"} if path == COMPLETIONS else {"messages": USER}
    return {"model": "demo", "max_tokens": 3} | prompt | fields


def make_client(url: str) -> httpx2.AsyncClient:
    """What is sent is JSON, unless a request says that it is something else."""
    headers = {"content-type": "application/json"}
    return httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S, headers=headers)


async def ask(checkpoint: Path, path: str, body: Any, engine: Any = None, **options: Any) -> Any:
    """One answer of a server of its own; `body` is JSON or raw bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        serving(make_service(checkpoint, engine)) as servers,
        make_client(servers.url) as http,
    ):
        return await http.post(path, content=content, **options)


def events_of(text: str) -> list[Any]:
    """The JSON of every server-sent event; the stream has to end with [DONE]."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def check_error(answer: Any, status: int, param: str | None, part: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"]
    assert error["param"] == param
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert error["type"] == ("rate_limit_error" if status == 429 else kind)
    assert (error["code"] == "rate_limit_exceeded") == (status == 429)
