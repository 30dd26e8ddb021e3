"""The server for operators: a socket that only its own user can open, and Admin on it alone."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from api_servers import Servers, make_manager, make_reloader, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_builders import make_service

from omniserve.api.grpc_admin import AdminServicer
from omniserve.api.grpc_admin_server import GrpcAdminServer
from omniserve.errors import ConfigError
from omniserve.status.reporter import StatusReporter
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc


def make_server(checkpoint: Path, address: str) -> GrpcAdminServer:
    service = make_service(checkpoint)
    reloader = make_reloader(service, Path("not-there.yaml"))
    models = make_manager(service, Path("not-there.yaml"))
    servicer = AdminServicer(service, reloader, StatusReporter(service, reloader), models)
    return GrpcAdminServer(service, servicer, address)


@asynccontextmanager
async def started(checkpoint: Path, address: str) -> AsyncIterator[GrpcAdminServer]:
    server = make_server(checkpoint, address)
    await server.start(4711)
    try:
        yield server
    finally:
        await server.stop(0)


@pytest.fixture
def path(runtime_directory: Path) -> Path:
    return runtime_directory / "a %41.sock"


@pytest.mark.asyncio
async def test_the_socket_is_for_its_own_user_and_goes_with_the_server(
    tiny_checkpoint: Path, path: Path
) -> None:
    async with started(tiny_checkpoint, f"unix:{path}") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.address == f"unix:{path}"
    assert not path.exists()


@pytest.mark.asyncio
async def test_the_default_is_named_by_the_port(
    tiny_checkpoint: Path, runtime_directory: Path
) -> None:
    async with started(tiny_checkpoint, "auto") as server:
        assert server.address.endswith("/admin-4711.sock")
        path = Path(server.address.removeprefix("unix:"))
        assert path.parent.parent == runtime_directory
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = omniserve_pb2_grpc.AdminStub(channel)
            assert (await stub.GetStatus(pb.GetStatusRequest())).state == "ready"


@pytest.mark.asyncio
async def test_a_socket_of_a_busy_daemon_is_left_alone(tiny_checkpoint: Path, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigError, match="another process does already"):
            await make_server(tiny_checkpoint, f"unix:{path}").start(4711)
        assert path.is_socket()
    path.unlink()


@pytest.mark.asyncio
async def test_a_socket_that_nobody_listens_on_is_replaced(
    tiny_checkpoint: Path, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with started(tiny_checkpoint, f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.asyncio
async def test_what_is_in_use_stays(tiny_checkpoint: Path, path: Path, tmp_path: Path) -> None:
    async with started(tiny_checkpoint, f"unix:{path}"):
        other = make_server(tiny_checkpoint, f"unix:{path}")
        with pytest.raises(ConfigError, match=r"listen\.admin: .*another process does already"):
            await other.start(1)
        await other.stop(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    path.write_text("mine")
    other = make_server(tiny_checkpoint, f"unix:{path}")
    with pytest.raises(ConfigError, match="is there and is no socket"):
        await other.start(1)
    await other.stop(0)
    assert path.read_text() == "mine"
    path.unlink()
    other = make_server(tiny_checkpoint, f"unix:{path.parent}/not-there/a.sock")
    with pytest.raises(ConfigError, match="there is no such directory"):
        await other.start(1)
    await other.stop(0)


@pytest.mark.asyncio
async def test_the_socket_of_a_successor_is_left_alone(tiny_checkpoint: Path, path: Path) -> None:
    server = make_server(tiny_checkpoint, f"unix:{path}")
    await server.start(1)
    moved = path.with_name("moved")
    path.rename(moved)
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        # Not server.stop: what gRPC itself removes is its own matter.
        assert server._socket_file is not None
        server._socket_file.remove()
        assert path.is_socket()
    path.unlink()
    await server.stop(0)
    moved.unlink(missing_ok=True)


@pytest.mark.asyncio
async def test_clients_and_operators_have_nothing_of_each_others(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        mixed_up = (
            omniserve_pb2_grpc.AdminStub(servers.channel).GetStatus(pb.GetStatusRequest()),
            omniserve_pb2_grpc.InferenceStub(servers.admin_channel).ListModels(
                pb.ListModelsRequest()
            ),
        )
        for call in mixed_up:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        servers.grpc.set_serving(True)
        health = health_pb2_grpc.HealthStub(servers.admin_channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            request = health_pb2.HealthCheckRequest(service="omniserve.v1.Inference")
            await health.Check(request)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.asyncio
async def test_no_more_calls_than_operators_need(tiny_checkpoint: Path) -> None:
    async with serving(make_service(tiny_checkpoint)) as servers:
        watches = [
            servers.admin.WatchStatus(pb.WatchStatusRequest(interval_ms=60_000)) for _ in range(64)
        ]
        await asyncio.gather(*(watch.read() for watch in watches))
        with pytest.raises((grpc.aio.AioRpcError, TimeoutError)):
            # What does not fit waits at the client, as HTTP/2 has it, or is refused.
            await servers.admin.GetStatus(pb.GetStatusRequest(), timeout=0.5)
        for watch in watches:
            watch.cancel()
        async with asyncio.timeout(60):
            # Their places are free once the server has heard of it.
            while await state_or_refusal(servers) != "ready":
                await asyncio.sleep(0.01)


async def state_or_refusal(servers: Servers) -> str:
    try:
        return str((await servers.admin.GetStatus(pb.GetStatusRequest())).state)
    except grpc.aio.AioRpcError as refused:
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return "refused"
