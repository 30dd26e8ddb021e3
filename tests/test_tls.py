"""Certificates and keys: what is accepted, what is said of what is not, and when they end."""

import logging
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID
from listen_builders import HOST, CertificateFiles, TlsClient

from omniserve.certificate_dates import not_after
from omniserve.certificate_key import unspoken_key
from omniserve.cli import main
from omniserve.config_listen import TlsConfig
from omniserve.errors import ConfigError
from omniserve.tls import Tls, TlsFiles

AUTHORITY, OTHER = trustme.CA(), trustme.CA()
PATIENCE_S = 60.0


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    made = CertificateFiles(tmp_path, with_clients=True)
    made.write(AUTHORITY)
    return made


def self_signed(
    ends_at: datetime, key: CertificateIssuerPrivateKeyTypes | None = None
) -> tuple[bytes, bytes]:
    """PEM of certificate and key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    is_edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1990, 1, 1, tzinfo=UTC))
        .not_valid_after(ends_at)
        .sign(key, None if is_edwards else hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(pem), key_pem


@pytest.mark.parametrize(
    "ends_at",
    [
        datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        # From here on X.509 writes the year with four digits.
        datetime(2050, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_the_end_of_a_certificate(ends_at: datetime) -> None:
    certificate, _ = self_signed(ends_at)
    assert not_after(ssl.PEM_cert_to_DER_cert(certificate.decode())) == ends_at


def test_ends_of_other_certificates_agree_with_another_reader() -> None:
    for pem in (AUTHORITY.cert_pem.bytes(), *_chain(AUTHORITY.issue_cert(HOST))):
        expected = x509.load_pem_x509_certificate(pem).not_valid_after_utc
        assert not_after(ssl.PEM_cert_to_DER_cert(pem.decode())) == expected


def _chain(leaf: trustme.LeafCert) -> list[bytes]:
    return [blob.bytes() for blob in leaf.cert_chain_pems]


@pytest.mark.parametrize("num_bytes", [0, 1, 40])
def test_a_certificate_that_ends_early_has_no_end(num_bytes: int) -> None:
    whole = ssl.PEM_cert_to_DER_cert(AUTHORITY.cert_pem.bytes().decode())
    with pytest.raises(ValueError, match="ends early"):
        not_after(whole[:num_bytes])


def test_what_fits_is_read(files: CertificateFiles) -> None:
    shown = files.write(AUTHORITY)
    material = files.load().material
    assert material.ends_at == not_after(shown)
    certificate = x509.load_der_x509_certificate(shown)
    assert material.sha256 == certificate.fingerprint(hashes.SHA256()).hex()
    assert "PRIVATE" not in repr(material)


def test_comments_in_any_language_do_not_matter(files: CertificateFiles) -> None:
    for name in ("server.pem", "client-ca.pem"):
        path = files.directory / name
        path.write_bytes("# Schlüssel für dich\n".encode() + path.read_bytes())
    files.load()


def _write(name: str, content: bytes) -> "object":
    def change(files: CertificateFiles) -> None:
        (files.directory / name).write_bytes(content)

    return change


def _remove_key(files: CertificateFiles) -> None:
    (files.directory / "server.key").unlink()


def _key_of_another(files: CertificateFiles) -> None:
    leaf = AUTHORITY.issue_cert(HOST)
    (files.directory / "server.key").write_bytes(leaf.private_key_pem.bytes())


def _encrypt(files: CertificateFiles) -> None:
    path = files.directory / "server.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def _is_directory(files: CertificateFiles) -> None:
    _remove_key(files)
    (files.directory / "server.key").mkdir()


def _broken_certificate(files: CertificateFiles) -> None:
    path = files.directory / "server.pem"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][::-1]
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_remove_key, r"tls\.key: cannot read .*server\.key: No such file"),
        (_is_directory, r"tls\.key: cannot read .*server\.key: Is a directory"),
        (_key_of_another, r"tls\.key: the key is not that of tls\.certificate"),
        (_encrypt, r"tls\.key: the key has a passphrase"),
        (_write("server.key", b"nothing"), r"tls\.key: the file holds no private key"),
        (_write("server.key", b""), r"tls\.key: the file holds no private key"),
        (_write("server.pem", b""), r"tls\.certificate: the file holds no certificate"),
        (_broken_certificate, r"tls\.certificate: the file holds no certificate"),
        (_write("client-ca.pem", b"nothing"), r"tls\.client_ca: the file holds no certificate"),
        (_write("server.pem", b"x" * ((1 << 20) + 1)), r"tls\.certificate: .* is larger than"),
    ],
)
def test_what_does_not_fit_is_named(files: CertificateFiles, change: object, problem: str) -> None:
    assert callable(change)
    change(files)
    with pytest.raises(ConfigError, match=problem) as failed:
        files.load()
    assert "BEGIN" not in str(failed.value)


def test_credentials_of_systemd(
    files: CertificateFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = TlsConfig(certificate="server.pem", key="credential:server.key")
    with pytest.raises(ConfigError, match=r"tls\.key = 'credential:server\.key': systemd gave"):
        Tls.of(config, files.config_path)
    directory = tmp_path / "credentials"
    directory.mkdir()
    (files.directory / "server.key").rename(directory / "server.key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    assert TlsFiles(config, files.directory).read().client_ca is None


def test_without_a_section_there_is_no_tls(tmp_path: Path) -> None:
    assert Tls.of(None, tmp_path / "omniserve.yaml") is None


@pytest.mark.parametrize(
    ("days", "event"), [(-1, "certificate_expired"), (3, "certificate_ends_soon"), (60, None)]
)
def test_an_end_that_is_near_is_warned_of(
    tmp_path: Path, days: int, event: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = self_signed(datetime.now(UTC) + timedelta(days=days))
    (tmp_path / "server.pem").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    files = CertificateFiles(tmp_path)
    with caplog.at_level(logging.INFO, "omniserve"):
        tls = files.load()
        tls.put(tls.read())
    warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == ([] if event is None else [event] * 2)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa.generate_private_key(65537, 2048), ""),
        (ec.generate_private_key(ec.SECP256R1()), ""),
        (ec.generate_private_key(ec.SECP384R1()), ""),
        (ec.generate_private_key(ec.SECP521R1()), "P-521"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
        (ec.generate_private_key(ec.SECP256K1()), "of a rare kind"),
    ],
    ids=["rsa", "p256", "p384", "p521", "ed25519", "ed448", "k256"],
)
def test_keys_that_some_clients_cannot_speak_are_warned_of(
    tmp_path: Path,
    key: CertificateIssuerPrivateKeyTypes,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificate, key_pem = self_signed(datetime.now(UTC) + timedelta(days=60), key)
    (tmp_path / "server.pem").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key_pem)
    assert unspoken_key(ssl.PEM_cert_to_DER_cert(certificate.decode())) == kind
    files = CertificateFiles(tmp_path)
    # Some of them OpenSSL itself does not take for TLS.
    with caplog.at_level(logging.INFO, "omniserve"):
        files.load()
    events = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert events == (["certificate_key_not_for_grpc_python"] if kind else [])
    (tmp_path / "server.key").unlink()
    warnings = TlsFiles(files.config, tmp_path).warnings()
    assert [f"its key is {kind}," in each and "P-384" in each for each in warnings] == (
        [True] if kind else []
    )


@pytest.mark.parametrize("num_bytes", [0, 1, 40])
def test_a_certificate_that_ends_early_has_no_key(num_bytes: int) -> None:
    whole = ssl.PEM_cert_to_DER_cert(AUTHORITY.cert_pem.bytes().decode())
    with pytest.raises(ValueError, match="ends early"):
        unspoken_key(whole[:num_bytes])


def test_config_check_warns_of_a_key_where_it_can_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "omniserve.yaml"
    models, tiers = "[{name: demo, path: x}]", "[{name: b, class: best_effort}]"
    path.write_text(
        f"models: {models}\ntiers: {tiers}\ntls: {{certificate: server.pem, key: not-there.key}}\n"
    )
    for key, is_warned in ((ec.SECP521R1(), True), (ec.SECP256R1(), False)):
        certificate, _ = self_signed(
            datetime.now(UTC) + timedelta(days=60), ec.generate_private_key(key)
        )
        (tmp_path / "server.pem").write_bytes(certificate)
        assert main(["config", "check", str(path)]) == 0
        said = capsys.readouterr().err
        assert ("warning: tls.certificate: its key is P-521" in said) == is_warned


def test_config_check_warns_of_files_that_cannot_be_served(
    files: CertificateFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    path = tmp_path / "omniserve.yaml"
    text = (
        f"models: [{{name: demo, path: {checkpoint}}}]\ntiers: [{{name: b, class: best_effort}}]\n"
    )
    path.write_text(f"{text}tls: {{certificate: server.pem, key: server.key}}\n")
    assert main(["config", "check", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "status with http, TLS; " in captured.out
    _key_of_another(files)
    assert main(["config", "check", str(path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "warning: tls.key: the key is not that of tls.certificate; `omniserve serve`" in line
    (tmp_path / "server.pem").unlink()
    assert main(["config", "check", str(path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"warning: tls.certificate: cannot read {tmp_path}/server.pem: No such file" in line


def test_config_check_does_not_ask_for_credentials_that_only_the_service_gets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "omniserve.yaml"
    text = f"models: [{{name: demo, path: {tmp_path}}}]\ntiers: [{{name: b, class: best_effort}}]\n"
    path.write_text(f'{text}tls: {{certificate: "credential:a", key: "credential:b"}}\n')
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert main(["config", "check", str(path)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert main(["config", "check", str(path)]) == 0
    assert f"tls.certificate: cannot read {tmp_path}/a" in capsys.readouterr().err


def _handshake(context: ssl.SSLContext, client: TlsClient) -> str | None:
    """By what name of an error a client fails; None where it does not."""
    ours, theirs = socket.socketpair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    problems: list[str] = []

    def connect() -> None:
        with theirs:
            try:
                with client.context.wrap_socket(theirs, server_hostname=HOST) as secured:
                    secured.recv(1)
            except OSError as error:
                problems.append(type(error).__name__)

    thread = threading.Thread(target=connect)
    thread.start()
    with ours:
        try:
            while True:
                try:
                    server.do_handshake()
                    server.write(b"x")
                    ours.sendall(outgoing.read())
                    break
                except ssl.SSLWantReadError:
                    ours.sendall(outgoing.read())
                    incoming.write(ours.recv(1 << 16))
        except ssl.SSLError as error:
            problems.append(error.reason)
    thread.join(timeout=PATIENCE_S)
    return problems[0] if problems else None


def test_new_connections_get_the_new_certificates_and_old_authorities_are_forgotten(
    files: CertificateFiles,
) -> None:
    tls = files.load()
    old = TlsClient(AUTHORITY, AUTHORITY.issue_cert("client@example.org"))
    new = TlsClient(OTHER, OTHER.issue_cert("client@example.org"))
    assert _handshake(tls.context, old) is None
    assert _handshake(tls.context, TlsClient(AUTHORITY)) is not None
    files.write(OTHER)
    assert _handshake(tls.context, old) is None
    tls.put(tls.read())
    assert _handshake(tls.context, new) is None
    assert _handshake(tls.context, TlsClient(OTHER)) is not None
    # Trusts the server, and shows what was good before.
    assert _handshake(tls.context, TlsClient(OTHER, old.own)) is not None
