"""What is said, and checked, of a configuration's addresses before anything listens."""

import socket
from collections.abc import Iterator

from omniserve.admin_address import AUTO
from omniserve.config import Config
from omniserve.config_listen import UNIX
from omniserve.config_values import is_loopback, split_address
from omniserve.errors import ConfigError

DEFAULT_STATUS_ADDRESS = "127.0.0.1:8001"


def status_address(config: Config) -> str | None:
    """Of the server for status page and metrics; None where the HTTP server has them."""
    return config.listen.status or (DEFAULT_STATUS_ADDRESS if config.tenants else None)


def listening_warnings(config: Config) -> list[str]:
    """Of what is allowed, and yet may not be what was meant; the keys are named."""
    opened = [
        f"listen.{key} = {address}"
        for key, address in (("grpc", config.listen.grpc), ("http", config.listen.http))
        if not is_loopback(address)
    ]
    if opened and config.tls is None:
        listed = " and ".join(opened)
        return [
            f"{listed}: open to the network and not encrypted, so that tokens can be read on the "
            "way; give tls, or let a proxy on this machine have it"
        ]
    return []


def check_free(config: Config) -> None:
    """Raises ConfigError where an address is in use; the servers bind for themselves later."""
    for key, address in _addresses(config):
        host, port = split_address(address)
        try:
            family, kind, protocol, _, target = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
                probe.listen(1)
        except OSError as error:
            raise ConfigError(f"{key}: cannot listen on {address}: {error.strerror}") from None


def _addresses(config: Config) -> Iterator[tuple[str, str]]:
    listen = config.listen
    yield "listen.grpc", listen.grpc
    yield "listen.http", listen.http
    if listen.admin != AUTO and not listen.admin.startswith(UNIX):
        yield "listen.admin", listen.admin
    status = status_address(config)
    if status is not None:
        yield "listen.status", status
