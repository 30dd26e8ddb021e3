"""Services with limits, certificates of authorities made for the test, and sockets that see TLS."""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from service_builders import ScriptedEngine, make_config

from omniserve.config import Config
from omniserve.config_listen import LimitsConfig, TlsConfig
from omniserve.metrics import Metrics
from omniserve.service import GenerationService
from omniserve.tls import Tls

HOST = "127.0.0.1"
PATIENCE_S = 60.0


def limited_config(checkpoint: Path, **limits: object) -> Config:
    config = make_config(checkpoint)
    return config.model_copy(update={"limits": LimitsConfig.model_validate(limits)})


def limited_service(
    checkpoint: Path, engine: ScriptedEngine | None = None, **limits: object
) -> GenerationService:
    return GenerationService(
        limited_config(checkpoint, **limits), engine or ScriptedEngine(), Metrics()
    )


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """What a daemon is told to use; tests write into the files."""

    directory: Path
    with_clients: bool = False
    """Whether clients have to show certificates."""

    @property
    def config(self) -> TlsConfig:
        ca = "client-ca.pem" if self.with_clients else None
        return TlsConfig(certificate="server.pem", key="server.key", client_ca=ca)

    @property
    def config_path(self) -> Path:
        return self.directory / "omniserve.yaml"

    def write(self, authority: trustme.CA) -> bytes:
        """A new certificate of this authority, which is that of clients too. Returns it as DER."""
        leaf = authority.issue_cert(HOST, "localhost")
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        (self.directory / "server.pem").write_bytes(chain)
        (self.directory / "server.key").write_bytes(leaf.private_key_pem.bytes())
        (self.directory / "client-ca.pem").write_bytes(authority.cert_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())

    def load(self) -> Tls:
        tls = Tls.of(self.config, self.config_path)
        assert tls is not None
        return tls


@dataclass(frozen=True, slots=True)
class TlsClient:
    """Trusts one authority, and shows a certificate where it has one."""

    authority: trustme.CA
    own: trustme.LeafCert | None = None

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        if self.own is not None:
            self.own.configure_cert(context)
        return context

    @property
    def grpc_parts(self) -> tuple[bytes, bytes | None, bytes | None]:
        """Roots, key and chain."""
        root = self.authority.cert_pem.bytes()
        if self.own is None:
            return root, None, None
        chain = b"".join(blob.bytes() for blob in self.own.cert_chain_pems)
        return root, self.own.private_key_pem.bytes(), chain

    def shown_certificate(self, address: str) -> bytes:
        """What a server shows of itself, as DER; raises OSError where it ends the connection."""
        host, _, port = address.rpartition(":")
        context = self.context
        # gRPC speaks to nobody who does not offer HTTP/2.
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            assert shown is not None
            return shown
