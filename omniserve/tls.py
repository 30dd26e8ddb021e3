"""Certificates and keys: read and checked together, and swapped while connections go on."""

import contextlib
import hashlib
import logging
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from omniserve.certificate_dates import not_after
from omniserve.certificate_key import unspoken_key
from omniserve.config_listen import CREDENTIAL, TlsConfig
from omniserve.errors import ConfigError
from omniserve.logs import get_logger, log_event
from omniserve.regular_file import read_regular_file

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
MAX_FILE_BYTES = 1 << 20
SOON = timedelta(days=14)
"""A certificate that ends within this time is warned of."""
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_ENCRYPTED = (b"ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class TlsMaterial:
    """What was in the files at one moment, and fits together."""

    certificate: bytes
    """PEM, with those that lead to its root."""
    key: bytes
    """PEM."""
    client_ca: bytes | None
    """PEM; None where clients need no certificate."""
    context: ssl.SSLContext
    """The same for servers of the ssl module."""
    sha256: str
    """Of the certificate, as tools call its fingerprint."""
    ends_at: datetime
    unspoken_key: str
    """Its kind, where gRPC clients in Python cannot speak it."""


class TlsFiles:
    """Where certificate, key and authorities are."""

    def __init__(self, config: TlsConfig, directory: Path) -> None:
        """Relative paths start at `directory`."""
        self._config = config
        self._directory = directory

    @property
    def are_handed_over(self) -> bool:
        """Whether some are credentials, which only the service that systemd started gets."""
        named = (self._config.certificate, self._config.key, self._config.client_ca or "")
        has_credentials = any(given.startswith(CREDENTIAL) for given in named)
        return has_credentials and not os.environ.get(CREDENTIALS_VARIABLE)

    def read(self) -> TlsMaterial:
        """Raises ConfigError, which names the key, where a file cannot be used."""
        certificate = self._certificate()
        key = self._content("key")
        client_ca = None
        if self._config.client_ca is not None:
            client_ca = _certificates("client_ca", self._content("client_ca"))
        first = _first(certificate)
        return TlsMaterial(
            certificate,
            key,
            client_ca,
            _context(certificate, key, client_ca),
            hashlib.sha256(first).hexdigest(),
            not_after(first),
            unspoken_key(first),
        )

    def warnings(self) -> list[str]:
        """Of a certificate that is right, and yet may not serve everybody; for who may not read the
        key too. Raises ConfigError."""
        kind = unspoken_key(_first(self._certificate()))
        if not kind:
            return []
        return [
            f"tls.certificate: its key is {kind}, which gRPC clients in Python cannot speak; take "
            "RSA, P-256 or P-384"
        ]

    def _certificate(self) -> bytes:
        return _certificates("certificate", self._content("certificate"))

    def _content(self, field: str) -> bytes:
        given: str = getattr(self._config, field)
        path = self._path(field, given)
        try:
            content = read_regular_file(path, MAX_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"tls.{field}: cannot read {path}: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"tls.{field}: {path} is larger than {MAX_FILE_BYTES} bytes")
        return content

    def _path(self, field: str, given: str) -> Path:
        if not given.startswith(CREDENTIAL):
            # Not as a Path, which raises where there is no such user.
            return self._directory / os.path.expanduser(given)
        directory = os.environ.get(CREDENTIALS_VARIABLE)
        if not directory:
            problem = f"systemd gave this process no credentials (${CREDENTIALS_VARIABLE})"
            raise ConfigError(f"tls.{field} = {given!r}: {problem}")
        return Path(directory) / given.removeprefix(CREDENTIAL)


class Tls:
    """What new connections get; those that are there keep what they have."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError."""
        self._files = files
        self.material = files.read()
        self.context = _ContextInForce(self.material.context)
        _warn(self.material)

    @classmethod
    def of(cls, config: TlsConfig | None, config_path: Path) -> Self | None:
        """As the configuration file at `config_path` says; None where it says nothing."""
        if config is None:
            return None
        return cls(TlsFiles(config, config_path.resolve().parent))

    def read(self) -> TlsMaterial:
        """What is in the files now; changes nothing. Raises ConfigError."""
        return self._files.read()

    def put(self, material: TlsMaterial) -> None:
        """Takes it over for connections from now on."""
        has_changed = material.sha256 != self.material.sha256
        self.material = material
        self.context.in_force = material.context
        log_event(_logger, "tls_reloaded", sha256=material.sha256, is_new=has_changed)
        _warn(material)


class _ContextInForce(ssl.SSLContext):
    """Stands for the context that is in force when a connection comes.

    Changing one context in place would leave authorities trusted that are not any more.
    """

    in_force: ssl.SSLContext

    def __new__(cls, in_force: ssl.SSLContext) -> Self:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self.in_force = in_force
        return self

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self.in_force.wrap_bio(*args, **options)


def _certificates(field: str, content: bytes) -> bytes:
    """The certificates of a PEM file and nothing else of it."""
    found = b"\n\n".join(_CERTIFICATE.findall(content)) + b"\n"
    try:
        # Also refuses what holds no certificate.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"tls.{field}: the file holds no certificate in PEM form") from None
    return found


def _first(certificates: bytes) -> bytes:
    """DER of the server's own, which is the first in its file."""
    return ssl.PEM_cert_to_DER_cert(_CERTIFICATE.findall(certificates)[0].decode("ascii"))


def _context(certificate: bytes, key: bytes, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if any(sign in key for sign in _ENCRYPTED):
        raise ConfigError("tls.key: the key has a passphrase; give it without one")
    with _in_memory(certificate) as certificate_path, _in_memory(key) as key_path:
        try:
            # With a password given, OpenSSL never asks the terminal for one.
            context.load_cert_chain(certificate_path, key_path, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError("tls.key: the key is not that of tls.certificate") from None
            raise ConfigError(
                "tls.key: the file holds no private key in PEM form that goes with tls.certificate"
            ) from None
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path of this content: the ssl module takes files alone, and each has to be read once only,
    or a rotation could come between two readings."""
    descriptor = os.memfd_create("omniserve-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _warn(material: TlsMaterial) -> None:
    kind = material.unspoken_key
    if kind:
        event = "certificate_key_not_for_grpc_python"
        log_event(_logger, event, level=logging.WARNING, key=kind, allowed="RSA, P-256, P-384")
    left = material.ends_at - datetime.now(UTC)
    if left < SOON:
        event = "certificate_expired" if left < timedelta() else "certificate_ends_soon"
        ends_at = material.ends_at.isoformat()
        log_event(_logger, event, level=logging.WARNING, ends_at=ends_at, sha256=material.sha256)
