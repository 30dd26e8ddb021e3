"""How commands reach a daemon: as its clients do, or, for operators, its Admin service."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

ADDRESS_VARIABLE = "OMNISERVE_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:50051"
ANSWER_TIMEOUT_S = 30.0
_OPTIONS = (
    # A proxy of the environment has no business between a machine and itself.
    ("grpc.enable_http_proxy", 0),
    # A server that vanished is noticed while an answer is awaited.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """For commands that use what a daemon serves; `open_server` reads them."""
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help=f"its gRPC address (default: ${ADDRESS_VARIABLE}, else {DEFAULT_ADDRESS})",
    )
    add_token_argument(group)
    group.add_argument(
        "--tls",
        action="store_true",
        help="encrypt, and trust the authorities that grpc trusts; the options below imply it",
    )
    group.add_argument(
        "--ca", type=Path, metavar="FILE", help="PEM file of the authorities to trust instead"
    )
    group.add_argument(
        "--cert", type=Path, metavar="FILE", help="PEM file of the certificate to show"
    )
    group.add_argument("--key", type=Path, metavar="FILE", help="PEM file of its private key")


def add_token_argument(parser: argparse._ActionsContainer) -> None:
    """`read_token` takes what it says."""
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="holds the token to show, where the server has tenants (default: $OMNISERVE_TOKEN); "
        "a token on the command line would be seen by everyone on the machine",
    )


def add_admin_argument(parser: argparse.ArgumentParser) -> None:
    """For commands of operators; `open_admin` reads it."""
    parser.add_argument(
        "--admin",
        metavar="ADDRESS",
        help="the daemon's admin address, unix:/path or host:port (default: $OMNISERVE_ADMIN, else "
        "the only daemon that answers where daemons of this user or the service listen)",
    )


@dataclass(frozen=True, slots=True)
class Connection:
    """To one daemon."""

    address: str
    """As messages name it."""
    channel: "grpc.Channel"
    metadata: tuple[tuple[str, str], ...] = ()

    def ask(
        self, method: Callable[..., Any], request: object, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Any:
        """The answer of a method of a stub; raises OmniServeError."""
        import grpc

        from omniserve.commands.call_errors import error_of_call
        from omniserve.commands.call_thread import call_apart

        try:
            return call_apart(lambda: method(request, timeout=timeout_s, metadata=self.metadata))
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None


@contextmanager
def open_server(args: argparse.Namespace) -> Iterator[Connection]:
    """Connects when it is first used; raises ConfigError for what cannot be meant."""
    from omniserve.commands.credentials import (
        read_certificates,
        read_token,
        warn_of_open_token,
    )

    grpc = _import_grpc()
    address = _address_of(args)
    token = read_token(args.token_file)
    certificates = read_certificates(args)
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    if certificates is None:
        if token is not None:
            warn_of_open_token(address, "; give --tls or --ca")
        channel = grpc.insecure_channel(address, _OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(
            certificates.authorities, certificates.key, certificates.chain
        )
        channel = grpc.secure_channel(address, credentials, _OPTIONS)
    with channel:
        yield Connection(address, channel, metadata)


@contextmanager
def open_admin(args: argparse.Namespace) -> Iterator[Connection]:
    """Connects when it is first used; raises ConfigError where no daemon is found."""
    from omniserve.admin_address import find_admin_address

    grpc = _import_grpc()
    address = find_admin_address(args.admin)
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        yield Connection(address, channel)


def _address_of(args: argparse.Namespace) -> str:
    from omniserve.config_values import split_address
    from omniserve.errors import ConfigError

    named = os.environ.get(ADDRESS_VARIABLE)
    source, address = f"${ADDRESS_VARIABLE}", named or DEFAULT_ADDRESS
    if args.address is not None:
        source, address = "--address", args.address
    try:
        split_address(address)
    except ValueError as error:
        raise ConfigError(f"{source} {ascii(address[:128])}: {error}; give host:port") from None
    return address


def _import_grpc() -> Any:
    # What failed is told by the command; grpc would write lines of its own beside it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    return grpc
