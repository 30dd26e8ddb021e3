"""Server-sent events of an OpenAI completion, read for one thing: how many tokens came when."""

import msgspec

from omniserve.bench.load.target import OnTokens, RequestFailed

_PREFIX = b"data: "
_END = b"[DONE]"
_MAX_LINE_BYTES = 1 << 20


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    message: str = "unknown error"


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Event)


class EventStream:
    """Fed with a body as it comes; tells tokens at once.

    An event that carries usage tells how many tokens there are by then; one that does not counts
    as one token until the usage at the end says better.
    """

    def __init__(self, on_tokens: OnTokens) -> None:
        self._on_tokens = on_tokens
        self._rest = b""
        self._num_told = 0
        self._num_tokens: int | None = None
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Raises RequestFailed for an error inside the stream, and for what is no event."""
        # Only a line feed ends a line: generated text may hold what Unicode calls breaks.
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise RequestFailed(f"HTTP stream: a line is longer than {_MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(_PREFIX):
                self._read(line[len(_PREFIX) :].rstrip(b"\r"))

    def total(self) -> int:
        """Tokens of the whole answer by the server's count; raises RequestFailed where it is cut
        short."""
        if not self._is_over:
            raise RequestFailed("HTTP stream: it ended without [DONE]")
        return self._num_told if self._num_tokens is None else self._num_tokens

    def _read(self, data: bytes) -> None:
        if data == _END:
            self._is_over = True
            return
        try:
            event = _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise RequestFailed(f"HTTP stream: an event cannot be read: {error}") from None
        if event.error is not None:
            raise RequestFailed(f"HTTP stream: {event.error.message}")
        if event.usage is not None:
            self._num_tokens = event.usage.completion_tokens
        if event.choices:
            num_new = 1 if event.usage is None else event.usage.completion_tokens - self._num_told
            if num_new > 0:
                self._num_told += num_new
                self._on_tokens(num_new)
