"""More of everything than is allowed: each flood is refused in words, and nobody else suffers."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from api_servers import serving
from daemon_process import PATIENCE_S
from fault_daemon import (
    FaultDaemon,
    completion,
    connect,
    fault_daemon,
    http_post,
    make_body,
    make_request,
    wait_for,
    write_config,
)
from fault_tokens import make_token, sha256
from service_builders import make_service

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

MAX_REQUESTS = 16
MAX_CONNECTIONS = 48
LIMITS = {
    "max_requests": MAX_REQUESTS,
    "max_connections": MAX_CONNECTIONS,
    "max_message_bytes": "64KiB",
    "max_prompt_tokens": 400,
    "max_output_tokens": 300,
    # Connections that say nothing are to stay as long as a test needs them.
    "handshake_s": 120,
}
SLOW = ("--token-s", "0.2")
SOME_TOKENS, MANY_TOKENS = 10, 300
"""Of streams that last two seconds, and of those that outlast a test."""
GREEDY, MODEST = make_token("greedy"), make_token("modest")
"""Two tenants' tokens."""
CONCURRENT = 4
SLACK = 8


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[FaultDaemon]:
    config = write_config(tmp_path_factory.mktemp("f"), tiny_checkpoint, limits=LIMITS)
    with fault_daemon(config, *SLOW) as running:
        yield running


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[FaultDaemon]:
    """With two tenants, of which one has a quota."""
    directory = tmp_path_factory.mktemp("f")
    tenants = [
        {"name": "greedy", "token_sha256": sha256(GREEDY), "quota": {"concurrent": CONCURRENT}},
        {"name": "modest", "token_sha256": sha256(MODEST)},
    ]
    listen = {
        **{"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "status": "127.0.0.1:0"},
        "admin": f"unix:{directory}/a.sock",
    }
    config = write_config(directory, tiny_checkpoint, tenants=tenants, listen=listen)
    with fault_daemon(config, *SLOW) as running:
        yield running


async def codes_of_streams(
    address: str, num_streams: int, num_tokens: int, metadata: Any = (), num_channels: int = 1
) -> Counter[str]:
    """Of streams that are all begun at the same time, over so many connections."""

    async def one(channel: grpc.aio.Channel) -> str:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        try:
            async for _ in stub.Generate(make_request(num_tokens), metadata=metadata):
                pass
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, own_connection))
            for _ in range(num_channels)
        ]
        calls = (one(channels[number % num_channels]) for number in range(num_streams))
        return Counter(await asyncio.gather(*calls))


@pytest.mark.asyncio
async def test_more_calls_than_allowed_are_refused_at_once(daemon: FaultDaemon) -> None:
    codes = await codes_of_streams(
        daemon.grpc_address, 10 * MAX_REQUESTS, SOME_TOKENS, num_channels=20
    )
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes["OK"] >= MAX_REQUESTS
    await asyncio.to_thread(daemon.check_well)


def test_more_requests_than_allowed_get_429(daemon: FaultDaemon) -> None:
    body = httpx.Request("POST", "http://x", json=make_body(MANY_TOKENS, stream=True)).content
    with ExitStack() as stack:
        for _ in range(MAX_REQUESTS):
            connection = stack.enter_context(connect(daemon.http_address, http_post(body)))
            assert connection.recv(13) == b"HTTP/1.1 200 "
        for _ in range(10):
            answer = completion(daemon.url)
            assert answer.status_code == 429
            assert float(answer.headers["retry-after"]) > 0
    daemon.check_well()


def test_more_connections_than_allowed_get_503(daemon: FaultDaemon) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(connect(daemon.http_address))
        assert completion(daemon.url).status_code == 503
    daemon.check_well()


def test_connections_far_beyond_what_is_allowed_are_not_kept(daemon: FaultDaemon) -> None:
    before = daemon.front.num_fds()
    with ExitStack() as stack:
        for _ in range(10 * MAX_CONNECTIONS):
            stack.enter_context(connect(daemon.http_address))
        daemon.wait_descriptors(before + 2 * MAX_CONNECTIONS + SLACK)
    daemon.check_well()


def test_messages_beyond_the_limit_are_refused(daemon: FaultDaemon) -> None:
    request = make_request(3, request_id="x" * (100 << 10))
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            stub.Complete(request)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = completion(daemon.url, user="x" * (100 << 10))
    assert answer.status_code == 413
    daemon.check_well()


def test_prompts_and_outputs_beyond_the_limits_are_refused(daemon: FaultDaemon) -> None:
    for num_tokens, most, param in ((401, "400", "prompt"), (301, "300", "max_tokens")):
        answer = completion(daemon.url, num_tokens)
        assert answer.status_code == 400
        assert most in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == param
        with grpc.insecure_channel(daemon.grpc_address) as channel:
            request = make_request(num_tokens)
            request.sampling.max_tokens = num_tokens
            with pytest.raises(grpc.RpcError) as failed:
                omniserve_pb2_grpc.InferenceStub(channel).Complete(request)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert most in (failed.value.details() or "")
    daemon.check_well()


def test_a_flood_of_headers_is_refused(daemon: FaultDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.Complete(make_request(3), metadata=[("x-flood", "y" * (1 << 20))])
    many = "".join(f"X-{number}: y\r\n" for number in range(50_000))
    with connect(daemon.http_address) as connection:
        answer = b""
        try:
            connection.sendall(http_post(b"{}", headers=many))
            answer = connection.recv(100)
        except ConnectionError:
            pass
    assert not answer or answer[9:10] == b"4"
    daemon.check_well()


@pytest.mark.asyncio
async def test_a_tenant_beyond_its_quota_is_refused_and_the_other_served(
    shared: FaultDaemon,
) -> None:
    def metadata(token: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token}"),)

    greedy, modest = await asyncio.gather(
        codes_of_streams(shared.grpc_address, 200, SOME_TOKENS, metadata(GREEDY)),
        codes_of_streams(shared.grpc_address, 20, SOME_TOKENS, metadata(MODEST)),
    )
    assert modest == {"OK": 20}
    assert set(greedy) == {"OK", "RESOURCE_EXHAUSTED"}
    assert CONCURRENT <= greedy["OK"] < 100
    await asyncio.to_thread(shared.check_well, GREEDY)

    def nobody_is_counted() -> bool:
        tenants = shared.status().tenants
        return not any(tenant.num_concurrent or tenant.num_queued for tenant in tenants)

    await asyncio.to_thread(wait_for, nobody_is_counted)


def test_a_refused_flood_is_told_when_to_come_again(shared: FaultDaemon) -> None:
    headers = {"authorization": f"Bearer {GREEDY}"}
    body = httpx.Request("POST", "http://x", json=make_body(MANY_TOKENS, stream=True)).content
    authorization = f"Authorization: Bearer {GREEDY}\r\n"
    with ExitStack() as stack:
        for _ in range(CONCURRENT):
            wire = http_post(body, headers=authorization)
            connection = stack.enter_context(connect(shared.http_address, wire))
            assert connection.recv(13) == b"HTTP/1.1 200 "
        answer = completion(shared.url, headers=headers)
        assert answer.status_code == 429
        assert float(answer.headers["retry-after"]) > 0
    # Those that left are no longer counted.
    wait_for(lambda: completion(shared.url, headers=headers).status_code == 200)


def test_a_flood_of_guessed_tokens_is_refused(shared: FaultDaemon) -> None:
    with httpx.Client(base_url=shared.url, timeout=PATIENCE_S) as client:
        statuses = Counter(
            client.get(
                "/v1/models", headers={"authorization": f"Bearer {make_token(str(number))}"}
            ).status_code
            for number in range(500)
        )
    assert statuses == {401: 500}
    shared.check_well(MODEST)


@pytest.mark.asyncio
async def test_a_message_that_names_very_many_tiers_still_arrives(tiny_checkpoint: Path) -> None:
    """Clients limit what comes after an answer, and would be told of that limit alone."""
    service = make_service(tiny_checkpoint)
    (first, *_) = service.tiers.tiers
    many = [first.model_copy(update={"name": f"{'x' * 120}{number}"}) for number in range(250)]
    service.set_served((*service.tiers.tiers, *many), service.models)
    async with serving(service) as servers:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await servers.inference.Complete(
                pb.GenerateRequest(model="demo", text="x", tier="gold")
            )
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'gold' is not served" in (failed.value.details() or "")
