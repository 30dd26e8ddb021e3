"""What a command shows a server and asks of it: a token, and certificates."""

import argparse
import os
import re
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omniserve.config_values import is_loopback
from omniserve.errors import ConfigError
from omniserve.regular_file import read_regular_file

TOKEN_VARIABLE = "OMNISERVE_TOKEN"
_MAX_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
"""What a header can carry; whether it is a token that is known, the server decides."""


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Of the file, else of $OMNISERVE_TOKEN; None without either.

    Raises ConfigError, which never holds anything of what was read.
    """
    if file is None:
        given = environment.get(TOKEN_VARIABLE)
        return _token(given, f"${TOKEN_VARIABLE}") if given else None
    try:
        # Not only regular files: a shell's <(...) is a pipe.
        with file.open("rb") as opened:
            content = opened.read(_MAX_TOKEN_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token-file {_shown(file)}: {_why(error)}") from None
    return _token(content.decode("latin-1"), f"--token-file {_shown(file)}")


def warn_of_open_token(address: str, advice: str = "") -> None:
    """Where others may read it on its way to a `host:port`; `advice` begins as a part of a
    sentence does."""
    if not is_loopback(address):
        text = f"the token goes to {address} unencrypted{advice}"
        sys.stderr.write(f"omniserve: warning: {text}\n")


def _token(text: str, source: str) -> str:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{source}: holds no token, one word as `omniserve token new` makes it")
    return token


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM, as grpc takes it; None where the default is meant."""

    authorities: bytes | None = None
    key: bytes | None = None
    chain: bytes | None = None


def read_certificates(args: argparse.Namespace) -> Certificates | None:
    """Of --tls, --ca, --cert and --key; None where none of them was given, which is: without TLS.

    Raises ConfigError. What cannot be used is found here: grpc would only say that it failed.
    """
    if not (args.tls or args.ca or args.cert or args.key):
        return None
    if (args.cert is None) != (args.key is None):
        raise ConfigError("--cert and --key: one does not go without the other")
    found = Certificates(
        authorities=_read("--ca", args.ca),
        key=_read("--key", args.key),
        chain=_read("--cert", args.cert),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if found.authorities is not None:
        try:
            context.load_verify_locations(cadata=found.authorities.decode("latin-1"))
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"--ca {_shown(args.ca)}: holds no certificate in PEM form") from None
    if args.cert is not None:
        try:
            context.load_cert_chain(args.cert, args.key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError):
            raise ConfigError(
                f"--cert {_shown(args.cert)}, --key {_shown(args.key)}: must be a certificate and "
                "its own private key without a passphrase, in PEM form"
            ) from None
    return found


def _read(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return read_regular_file(path, 1 << 20)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} {_shown(path)}: {_why(error)}") from None


def _shown(path: Path) -> str:
    return str(path).encode(errors="backslashreplace").decode()


def _why(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read: {reason}"
