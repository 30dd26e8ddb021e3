"""What the demo's HTTP client makes of a stream."""

import json

import httpx
import pytest

from omniserve.demo.clients import _events

TEXT = "a\u2028b\u0085c\x1cd"


class _Pieces(httpx.AsyncByteStream):
    """A body that arrives a few bytes at a time."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        for start in range(0, len(self._body), 7):
            yield self._body[start : start + 7]


@pytest.mark.asyncio
async def test_breaks_inside_a_text_do_not_end_its_line() -> None:
    event = json.dumps({"choices": [{"text": TEXT}]}, ensure_ascii=False)
    body = f": hello\n\ndata: {event}\r\n\r\ndata: {event}\n\ndata: [DONE]\n\n".encode()
    response = httpx.Response(200, stream=_Pieces(body))
    texts = [event["choices"][0]["text"] async for event in _events(response)]
    assert texts == [TEXT, TEXT]
