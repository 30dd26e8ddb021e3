"""HTTP connections to one server: as many as there are requests at a time, kept for the next."""

import asyncio
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from omniserve.bench.load.http_connection import HttpAnswer, HttpConnection, OnBody
from omniserve.bench.load.target import RequestFailed
from omniserve.errors import ConfigError

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
MAX_IDLE_S = 2.0
"""Servers close idle connections after 5 s at the earliest; a request must not meet that."""
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where a server is, and under which path."""

    host: str
    port: int
    path: str

    @staticmethod
    def parse(url: str) -> "HttpAddress":
        """Reads http://host:port[/path] or host:port; raises ConfigError."""
        text = url if "://" in url else f"http://{url}"
        try:
            split = urllib.parse.urlsplit(text)
            host, port = split.hostname, split.port
        except ValueError as error:
            raise ConfigError(f"HTTP address {url!r}: {error}") from None
        if split.scheme != "http" or not host or split.query or split.fragment:
            allowed = "http://host:port, for example http://127.0.0.1:8000"
            raise ConfigError(f"HTTP address {url!r}: is not allowed; allowed: {allowed}")
        return HttpAddress(host, port or 80, split.path.rstrip("/").removesuffix("/v1"))

    @property
    def authority(self) -> str:
        """host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = _NO_HEADERS
    ) -> bytes:
        """A whole request; `headers` are those that it has besides."""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"{method} {self.path}{path} HTTP/1.1\r\nhost: {self.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        )
        return head.encode("ascii") + body


class HttpClient:
    """Made and used inside one event loop. Proxies of the environment are not used."""

    def __init__(self, address: HttpAddress, token: str | None = None) -> None:
        """`token` is shown with every request."""
        self._address = address
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._idle: list[HttpConnection] = []

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A whole request to this server, for `exchange`."""
        return self._address.request(method, path, body, self._headers)

    async def get(self, path: str) -> HttpAnswer:
        """Raises RequestFailed where no answer comes."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self.exchange(self.request("GET", path))
        except TimeoutError:
            raise RequestFailed(f"HTTP GET {path}: no answer in {ANSWER_TIMEOUT_S:g} s") from None

    async def exchange(self, payload: bytes, on_body: OnBody | None = None) -> HttpAnswer:
        """Sends a request made by `request`; see HttpConnection.exchange."""
        connection = self._idle_connection() or await self._connect()
        try:
            return await connection.exchange(payload, on_body)
        finally:
            if connection.is_reusable:
                connection.idle_since_s = asyncio.get_running_loop().time()
                self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _idle_connection(self) -> HttpConnection | None:
        """The one used last; those that idled for too long are closed."""
        oldest_s = asyncio.get_running_loop().time() - MAX_IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and connection.idle_since_s >= oldest_s:
                return connection
            connection.close()
        return None

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    HttpConnection, address.host, address.port
                )
        except TimeoutError:
            text = f"no connection in {CONNECT_TIMEOUT_S:g} s"
            raise RequestFailed(f"HTTP {address.host}:{address.port}: {text}") from None
        except OSError as error:
            said = error.strerror or str(error)
            raise RequestFailed(f"HTTP {address.host}:{address.port}: {said}") from None
        return connection
