"""Where the daemon listens, and how its connections are protected and limited."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from omniserve.config_section import Section
from omniserve.config_values import Address, Seconds, Size, refuse, split_address

UNIX = "unix:"
CREDENTIAL = "credential:"
MAX_SOCKET_PATH_BYTES = 100
"""The kernel allows 107, and something must be left for a temporary name."""


def _check_admin(value: str) -> str:
    if value == "auto":
        return value
    if value.startswith(UNIX):
        path = value.removeprefix(UNIX)
        is_short = 1 < len(path.encode()) <= MAX_SOCKET_PATH_BYTES
        if not (path.startswith("/") and path.isprintable() and is_short):
            allowed = f"an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes"
            raise refuse(f"must be unix: and {allowed}")
        return value
    try:
        split_address(value)
    except ValueError:
        raise refuse("must be auto, unix:/path or host:port") from None
    return value


class ListenConfig(Section):
    """Addresses of the servers."""

    grpc: Address = "127.0.0.1:50051"
    """host:port of the gRPC server; port 0 takes a free one."""
    http: Address = "127.0.0.1:8000"
    """host:port of the OpenAI HTTP server; port 0 takes a free one."""
    admin: Annotated[str, AfterValidator(_check_admin)] = "auto"
    """unix:/path or host:port of the gRPC Admin service, which nobody but operators should reach;
    auto is a socket in the daemon's runtime directory that only its own user can open."""
    status: Address | None = None
    """host:port of the status page and the metrics; unset: with the HTTP server, or, where there
    are tenants, at 127.0.0.1:8001."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        taken = {self.grpc: "grpc"}
        for key, address in (("http", self.http), ("admin", self.admin), ("status", self.status)):
            if address is None or address == "auto" or address.startswith(UNIX):
                continue
            other = taken.setdefault(address, key)
            if other != key and split_address(address)[1] != 0:
                raise refuse(f"must differ from listen.{other}", (key,))
        return self


def _check_file(value: str) -> str:
    name = value.removeprefix(CREDENTIAL)
    if not name or not name.isprintable() or (value != name and "/" in name):
        raise refuse("must be the path of a file, or credential: and the name of one")
    return value


SecretFile = Annotated[str, AfterValidator(_check_file)]
"""A path (a relative one starts at the configuration file), or `credential:NAME` for a file in
systemd's $CREDENTIALS_DIRECTORY."""


class TlsConfig(Section):
    """Certificates of the gRPC, HTTP and status servers; read again at every reload."""

    certificate: SecretFile
    """PEM file of the certificate, with those that lead to its root."""
    key: SecretFile
    """PEM file of its private key, without a passphrase."""
    client_ca: SecretFile | None = None
    """PEM file of the authorities whose certificates clients must show (mutual TLS)."""


class LimitsConfig(Section):
    """What one client may take up."""

    max_message_bytes: Size = 8 << 20
    """Largest message or HTTP body."""
    max_prompt_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    """Longest prompt; unset: what the model's context holds."""
    max_output_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    """Most tokens one choice may ask for; unset: what the model's context holds."""
    max_requests: int = Field(default=4096, ge=1, le=1 << 20)
    """Calls of Inference over gRPC, and POST requests over HTTP, that are answered at the same
    time; half of them at most for one tenant."""
    max_connections: int = Field(default=2048, ge=1, le=1 << 20)
    """Connections to each server; beyond it HTTP requests get 503, and gRPC connections are not
    taken."""
    handshake_s: Seconds = 10.0
    """Longest time until a connection has shown what it wants: TLS, HTTP/2 or request headers."""
    idle_s: Seconds = 300.0
    """A connection without calls is closed after so long."""
    age_s: Seconds | None = None
    """A connection is told to end after so long, so that clients spread anew; unset: never."""
    unread_tokens: int = Field(default=32_768, ge=16, le=1 << 20)
    """Tokens that may wait for a client that does not read them; then its request ends."""
    unread_s: Seconds = 60.0
    """So long a client may read nothing of what waits for it; then its request ends."""


_ENDPOINT = r"https?://[^\s/@?#]+(/[^\s?#]*)?"


def _check_endpoint(value: str) -> str:
    if not re.fullmatch(_ENDPOINT, value):
        raise refuse("must be http:// or https://, a host and perhaps a path; no login, ? or #")
    return value


class TracingConfig(Section):
    """OpenTelemetry traces of requests."""

    endpoint: Annotated[
        str,
        Field(max_length=2048, json_schema_extra={"pattern": f"^{_ENDPOINT}$"}),
        AfterValidator(_check_endpoint),
    ]
    """Of the collector that understands OTLP, for example http://127.0.0.1:4317."""
    protocol: Annotated[str, Field(pattern=r"^(grpc|http)$")] = "grpc"
    """grpc, or http for protobuf over HTTP."""
    sample_share: float = Field(default=1.0, ge=0, le=1)
    """Part of the requests without a sampled parent that are traced."""
