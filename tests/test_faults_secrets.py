"""Tokens, keys and prompts are put wherever people put them: nothing that is read repeats them."""

import base64
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from daemon_process import PATIENCE_S
from fault_daemon import FaultDaemon, fault_daemon, make_body, wait_for, write_config
from fault_tokens import make_token, sha256

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

GOOD, OTHER, WRONG = (make_token(name) for name in ("good", "other", "wrong"))
"""Two tenants' tokens, and nobody's."""
PROMPT = "the otter crosses the frozen weir"
KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDq"
PEM = f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n"
PART_CHARS = 12
"""A secret is shown too if so much of it is."""


def parts_of(secret: str) -> Iterator[str]:
    for start in range(len(secret) - PART_CHARS + 1):
        yield secret[start : start + PART_CHARS]


SECRETS = [
    part
    for secret in (*(token.removeprefix("omni_") for token in (GOOD, OTHER, WRONG)), PROMPT, KEY)
    for part in parts_of(secret)
]


def shown(text: str) -> list[str]:
    """The secrets' parts that a text holds."""
    return [part for part in SECRETS if part in text]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    directory = tmp_path_factory.mktemp("f")
    tenants = [
        {"name": "one", "token_sha256": sha256(GOOD), "quota": {"concurrent": 100}},
        {"name": "two", "token_sha256": [sha256(OTHER)], "tiers": ["batch"]},
    ]
    listen = {
        **{"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "status": "127.0.0.1:0"},
        "admin": f"unix:{directory}/a.sock",
    }
    return write_config(directory, tiny_checkpoint, tenants=tenants, listen=listen)


@pytest.fixture(scope="module")
def daemon(config: Path) -> Iterator[FaultDaemon]:
    with fault_daemon(config, serve_options=("--log-level", "debug")) as running:
        yield running


def test_a_search_that_finds_nothing_would_find_something() -> None:
    assert shown(f"... {GOOD[8:24]} ...")
    assert not shown("omni_ and nothing more")


HTTP_CALLS: list[tuple[str, str, dict[str, str], dict[str, Any]]] = [
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {"temperature": -1}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {"max_tokens": 10**6}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {"stop": [PROMPT] * 99}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {"prompt": [PROMPT, 1]}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {OTHER}"}, {"service_tier": "chat"}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {WRONG}"}, {}),
    ("POST", "/v1/completions", {"authorization": f"bearer  {GOOD}"}, {}),
    ("POST", "/v1/completions", {"authorization": GOOD}, {}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD} {OTHER}"}, {}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}\u00e9"}, {}),
    ("POST", "/v1/completions", {"x-api-key": GOOD}, {}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {"model": GOOD}),
    ("POST", "/v1/completions", {"authorization": f"Bearer {GOOD}"}, {"service_tier": OTHER}),
    (
        "POST",
        "/v1/completions",
        {"authorization": f"Bearer {GOOD}", "x-omniserve-tenant": OTHER},
        {},
    ),
    ("GET", f"/v1/models?api_key={GOOD}", {}, {}),
    ("GET", f"/v1/models/{WRONG}", {}, {}),
    ("GET", f"/{WRONG}", {}, {}),
    ("GET", "/v1/models", {"authorization": f"Bearer {GOOD}"}, {}),
    ("GET", "/metrics", {"authorization": f"Bearer {GOOD}"}, {}),
]
BASIC = "Basic " + base64.b64encode(f"one:{GOOD}".encode()).decode()


def test_http_answers_do_not_repeat_secrets(daemon: FaultDaemon) -> None:
    with httpx.Client(base_url=daemon.url, timeout=PATIENCE_S) as client:
        for method, path, headers, fields in (
            *HTTP_CALLS,
            ("GET", "/", {"authorization": BASIC}, {}),
        ):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            body = make_body(3) | {"prompt": PROMPT} | fields if method == "POST" else None
            answer = client.request(method, path, headers=raw, json=body)
            assert answer.status_code < 500
            assert not shown(answer.text), (path, answer.text)
            assert not shown(str(answer.headers))


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", f"Bearer {GOOD}"),),
        (("authorization", f"Bearer {WRONG}"),),
        (("authorization", f"Bearer {GOOD}"), ("authorization", f"Bearer {WRONG}")),
        (("authorization", GOOD),),
        (("authorization-bin", GOOD.encode()),),
        (("authorization", f"Bearer {GOOD}"), ("x-omniserve-tenant", "two")),
        (("x-omniserve-tenant", "one"),),
    ],
)
def test_grpc_answers_do_not_repeat_secrets(
    daemon: FaultDaemon, metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        for sampling in (pb.Sampling(max_tokens=2), pb.Sampling(stop=[PROMPT] * 99)):
            request = pb.GenerateRequest(model="echo", text=PROMPT, sampling=sampling)
            try:
                told = str(stub.Complete(request, metadata=metadata, timeout=PATIENCE_S))
            except grpc.RpcError as error:
                told = f"{error.code()} {error.details()} {error.trailing_metadata()}"
                assert error.code() is not grpc.StatusCode.INTERNAL
            assert not shown(told)


MISTAKES: list[dict[str, Any]] = [
    {"tenants": [{"name": "one", "token_sha256": GOOD}]},
    {"tenants": [{"name": "one", "token_sha256": [GOOD, sha256(OTHER)]}]},
    {"tenants": [{"name": GOOD + "!", "token_sha256": sha256(GOOD)}]},
    {"tenants": [{"name": "one", "token_sha256": sha256(GOOD), GOOD: 1}]},
    {"tenants": [{"name": "one", "token": GOOD, "token_sha256": {GOOD: GOOD}}]},
    {"tenants": GOOD},
    {GOOD: {}},
    {"tls": {"certificate": "c.pem", "key": PEM}},
    {"tls": {"certificate": PEM, "key": "k.pem"}},
    {"tracing": {"endpoint": f"http://user:{GOOD}@collector:4317"}},
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=range(len(MISTAKES)))
def test_a_configuration_with_secrets_in_it_is_refused_without_them(
    config: Path, daemon: FaultDaemon, mistake: dict[str, Any]
) -> None:
    good = config.read_text()
    num_before = daemon.process.log.count("reload_refused")
    try:
        config.write_text(yaml.safe_dump(yaml.safe_load(good) | mistake))
        daemon.process.signal(signal.SIGHUP)
        daemon.process.wait_log("reload_refused", num_before + 1)
        with grpc.insecure_channel(daemon.admin) as channel:
            admin = omniserve_pb2_grpc.AdminStub(channel)
            answer = admin.ReloadTiers(pb.ReloadTiersRequest(), timeout=PATIENCE_S)
    finally:
        config.write_text(good)
    assert not answer.accepted
    assert not shown(str(answer))


def explained(admin: omniserve_pb2_grpc.AdminStub, request_id: str) -> str:
    try:
        return str(admin.Explain(pb.ExplainRequest(request_id=request_id), timeout=PATIENCE_S))
    except grpc.RpcError as error:
        # It was refused before anything was noted of it.
        assert error.code() is grpc.StatusCode.NOT_FOUND
        return error.details() or ""


def test_what_operators_read_holds_no_secret(daemon: FaultDaemon) -> None:
    """Comes last: all that the tests before it have put anywhere would be there now."""
    daemon.check_well(GOOD)
    status = daemon.status()
    assert status.tenants
    assert not shown(str(status))
    with grpc.insecure_channel(daemon.admin) as channel:
        admin = omniserve_pb2_grpc.AdminStub(channel)
        ids = set(re.findall(r"request_id=(req-\w+)", daemon.process.log))
        told = [explained(admin, request_id) for request_id in ids]
    assert any("tokenised" in each for each in told)
    assert not shown(str(told))
    found = re.search(r"\bstatus=(127\.0\.0\.1:\d+)", daemon.process.log)
    assert found, "the log does not say where the status page is"
    for path in ("/", "/status.json", "/metrics"):
        answer = httpx.get(f"http://{found[1]}{path}", timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert not shown(answer.text), path
    wait_for(lambda: daemon.num_running == 0)
    assert not shown(daemon.process.log)
