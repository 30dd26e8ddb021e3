"""What commands show servers: where tokens and certificates may come from."""

import argparse
import os
import threading
from pathlib import Path

import pytest
import trustme

from omniserve.commands.credentials import read_certificates, read_token
from omniserve.errors import ConfigError

TOKEN = "omni_" + "aB3_-" * 8 + "xyz"


def certificates_of(**given: Path | bool | None) -> argparse.Namespace:
    return argparse.Namespace(**({"tls": False, "ca": None, "cert": None, "key": None} | given))


def test_a_token_comes_from_its_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path, {"OMNISERVE_TOKEN": "other"}) == TOKEN
    assert read_token(None, {"OMNISERVE_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {"OMNISERVE_TOKEN": ""}) is None
    assert read_token(None, {}) is None


def test_a_token_comes_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TOKEN,))
    writer.start()
    assert read_token(pipe, {}) == TOKEN
    writer.join()


@pytest.mark.parametrize("content", [b"", b"two words", b"omni_\xff", b"x" * 600, b"a\x00b"])
def test_what_is_no_token_is_never_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_token(path, {})
    assert "holds no token" in str(caught.value)
    shown = content.decode("latin-1")
    assert not shown or shown not in str(caught.value)
    with pytest.raises(ConfigError, match="OMNISERVE_TOKEN: holds no token"):
        read_token(None, {"OMNISERVE_TOKEN": "two words"})


def test_tls_is_what_its_options_say(tmp_path: Path) -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("localhost")
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    identity.private_key_pem.write_to_path(str(key))
    identity.cert_chain_pems[0].write_to_path(str(cert))
    assert read_certificates(certificates_of()) is None
    plain = read_certificates(certificates_of(tls=True))
    assert plain is not None and (plain.authorities, plain.key, plain.chain) == (None, None, None)
    mutual = read_certificates(certificates_of(ca=ca, cert=cert, key=key))
    assert mutual is not None and mutual.authorities == ca.read_bytes()
    assert (mutual.key, mutual.chain) == (key.read_bytes(), cert.read_bytes())

    other = authority.issue_cert("localhost")
    other.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    (tmp_path / "text").write_text("no certificate")
    for wrong, said in (
        (certificates_of(ca=tmp_path / "none"), "cannot be read: No such file"),
        (certificates_of(ca=tmp_path / "text"), "holds no certificate"),
        (certificates_of(cert=cert), "one does not go without the other"),
        (certificates_of(cert=cert, key=tmp_path / "other.pem"), "its own private key"),
        (certificates_of(cert=tmp_path / "text", key=key), "its own private key"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_certificates(wrong)
