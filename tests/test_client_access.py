"""Commands against a daemon with tenants and TLS: what they need to show, and how they end."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import trustme
from command_process import run_command
from daemon_process import DaemonProcess

from omniserve.access.bearer_token import hash_of, new_token
from omniserve.cli import main
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
_CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "unix:{directory}/admin.sock",
  status: "127.0.0.1:0"}}
tls: {{certificate: {directory}/cert.pem, key: {directory}/key.pem}}
models:
  - {{name: echo, path: {checkpoint}}}
  - {{name: other, path: {checkpoint}}}
tiers:
  - {{name: chat, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}}
  - {{name: batch, class: best_effort}}
tenants:
  - {{name: free, token_sha256: {free}}}
  - {{name: small, token_sha256: {small}, models: [echo], tiers: [batch],
     quota: {{input_tokens_per_minute: 14}}}}
"""


@dataclass(frozen=True, slots=True)
class Place:
    address: str
    directory: Path
    free_token: str
    small_token: str

    def ca(self) -> tuple[str, str]:
        return "--ca", str(self.directory / "ca.pem")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("access")
    for name in ("", "other-"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / f"{name}ca.pem"))
        identity = authority.issue_cert("127.0.0.1")
        identity.private_key_pem.write_to_path(str(directory / f"{name}key.pem"))
        identity.cert_chain_pems[0].write_to_path(str(directory / f"{name}cert.pem"))
    free, small = new_token(), new_token()
    (directory / "small.token").write_text(f"{small}\n")
    text = _CONFIG.format(
        directory=directory,
        checkpoint=tiny_checkpoint,
        free=hash_of(free),
        small=hash_of(small),
    )
    (directory / "omniserve.yaml").write_text(text)
    with DaemonProcess(SCRIPT, str(directory / "omniserve.yaml")) as process:
        address, _ = process.wait_ready()
        yield Place(address, directory, free, small)
        process.process.terminate()
        assert process.wait() == 0, process.log
        assert free not in process.log and small not in process.log


def test_a_token_from_the_environment_or_a_file(place: Place) -> None:
    given = ("models", "--json", "--address", place.address, *place.ca())
    free = run_command(*given, OMNISERVE_TOKEN=place.free_token)
    assert (free.returncode, free.stderr) == (0, "")
    assert [model["name"] for model in json.loads(free.stdout)["models"]] == ["echo", "other"]
    # The file counts before the environment, and the tenant sees what it may use.
    small = run_command(
        *(*given, "--token-file", str(place.directory / "small.token")),
        OMNISERVE_TOKEN=place.free_token,
    )
    assert [model["name"] for model in json.loads(small.stdout)["models"]] == ["echo"]


def test_who_may_not(place: Place) -> None:
    given = ("--address", place.address, *place.ca())
    for token, arguments in (
        ("", ["models"]),
        (new_token(), ["models"]),
        ("", ["chat", "x"]),
        (place.small_token, ["complete", "x", "--tier", "chat"]),
        (place.small_token, ["complete", "x", "--model", "other", "--tier", "batch"]),
    ):
        done = run_command(*arguments, *given, OMNISERVE_TOKEN=token)
        assert (done.returncode, done.stdout) == (4, ""), (arguments, done.stderr)
        assert done.stderr.startswith("omniserve: ")
        assert not token or token not in done.stderr


def test_certificates_that_do_not_fit(place: Place) -> None:
    wrong_authority = ("--ca", str(place.directory / "other-ca.pem"))
    for options in ((), wrong_authority, ("--tls",)):
        done = run_command(
            *("models", "--address", place.address, *options), OMNISERVE_TOKEN=place.free_token
        )
        assert (done.returncode, done.stdout) == (3, ""), options
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"omniserve: {place.address} does not answer")


class Listing(omniserve_pb2_grpc.InferenceServicer):
    """Says who asked."""

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        # The stubs say bytes where grpc gives a list of them.
        names: list[bytes] = list(
            cast(Any, context.auth_context()["x509_subject_alternative_name"])
        )
        return pb.ListModelsResponse(models=[pb.Model(name=name.decode()) for name in names])


def test_a_certificate_is_shown_where_one_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, paths = trustme.CA(), {}
    for name in ("127.0.0.1", "client.example"):
        identity = authority.issue_cert(name)
        paths[name] = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        identity.private_key_pem.write_to_path(str(paths[name][0]))
        identity.cert_chain_pems[0].write_to_path(str(paths[name][1]))
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    key, chain = (path.read_bytes() for path in paths["127.0.0.1"])
    credentials = grpc.ssl_server_credentials([(key, chain)], ca.read_bytes(), True)
    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        omniserve_pb2_grpc.add_InferenceServicer_to_server(Listing(), server)
        address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        given = ["models", "--json", "--address", address, "--ca", str(ca)]
        own_key, own_chain = map(str, paths["client.example"])
        assert main([*given, "--cert", own_chain, "--key", own_key]) == 0
        (model,) = json.loads(capsys.readouterr().out)["models"]
        assert model["name"] == "client.example"
        assert main(given) == 3
        server.stop(None).wait()


def test_a_token_is_not_sent_unencrypted_without_a_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token()
    monkeypatch.setenv("OMNISERVE_TOKEN", token)
    # Nobody can have this name, and the warning comes before anything is sent.
    assert main(["models", "--address", "server.invalid:1"]) == 3
    warning, failure = capsys.readouterr().err.splitlines()
    assert warning == (
        "omniserve: warning: the token goes to server.invalid:1 unencrypted; give --tls or --ca"
    )
    assert token not in failure


def test_a_quota_that_is_used_up_can_be_tried_again(place: Place) -> None:
    # Thirteen tokens: there are as many again after most of a minute.
    given = ("complete", "one two three four five six", "--address", place.address, *place.ca())
    statuses = []
    for _ in range(12):
        done = run_command(*given, OMNISERVE_TOKEN=place.small_token)
        statuses.append(done.returncode)
        if done.returncode:
            break
    assert statuses[0] == 0 and statuses[-1] == 3
    assert done.stderr.startswith("omniserve: ") and done.stdout == ""
