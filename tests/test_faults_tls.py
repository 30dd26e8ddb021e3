"""TLS handshakes that do not come, are nonsense, or are for another protocol."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from daemon_process import PATIENCE_S
from fault_daemon import (
    FaultDaemon,
    connect,
    fault_daemon,
    http_post,
    is_closed,
    make_body,
    make_request,
    split,
    write_config,
)

from omniserve.v1 import omniserve_pb2_grpc

CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
HANDSHAKE_S = 3.0
"""Long enough for clients that do all as they should on a slow machine."""
NUM_CONNECTIONS = 30
SLACK = 8
AUTHORITY = trustme.CA()


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[FaultDaemon]:
    directory = tmp_path_factory.mktemp("f")
    issued = AUTHORITY.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(directory / "cert.pem", append=True)
    tls = {"certificate": "cert.pem", "key": "key.pem"}
    limits = {"handshake_s": HANDSHAKE_S}
    config = write_config(directory, tiny_checkpoint, tls=tls, limits=limits)
    with fault_daemon(config) as running:
        yield running


def check_served(daemon: FaultDaemon) -> None:
    """By clients that do all as they should."""
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    with httpx.Client(verify=context, timeout=PATIENCE_S) as client:
        answer = client.post(f"{daemon.url}/v1/completions", json=make_body(3))
        assert answer.status_code == 200
    credentials = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())
    with grpc.secure_channel(daemon.grpc_address, credentials) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        result = stub.Complete(make_request(3), timeout=PATIENCE_S)
        assert len(result.choices[0].token_ids) == 3


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    "data", [b"", CLIENT_HELLO, CLIENT_HELLO + bytes(600), http_post(b"{}"), b"\xff" * 100]
)
def test_a_handshake_that_does_not_come_is_not_waited_for(
    daemon: FaultDaemon, protocol: str, data: bytes
) -> None:
    before = daemon.front.num_fds()
    address = split(daemon.url.removeprefix("https://"))
    if protocol == "grpc":
        address = split(daemon.grpc_address)
    connections = [connect(address, data) for _ in range(NUM_CONNECTIONS)]
    assert all(map(is_closed, connections))
    daemon.wait_descriptors(before + SLACK)
    check_served(daemon)


def test_a_client_that_does_not_trust_the_certificate_is_no_trouble(daemon: FaultDaemon) -> None:
    for _ in range(NUM_CONNECTIONS):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{daemon.url}/health", timeout=PATIENCE_S)
    check_served(daemon)
