"""The front's servers, together."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import pytest
from http_client import make_client
from service_builders import ScriptedEngine, make_config
from tenant_builders import make_tenant

from omniserve.front import Front
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc


def make_front(checkpoint: Path) -> Front:
    """With a status server, as there are tenants."""
    config = make_config(checkpoint)
    places = dict.fromkeys(("grpc", "http", "admin", "status"), "127.0.0.1:0")
    listen = config.listen.model_copy(update=places)
    tenants = (make_tenant("acme"),)
    config = config.model_copy(update={"listen": listen, "tenants": tenants})
    engine: Any = ScriptedEngine()
    return Front(config, Path("not-there.yaml"), engine)


async def grpc_code(address: str) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await omniserve_pb2_grpc.AdminStub(channel).GetStatus(pb.GetStatusRequest(), timeout=20)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.asyncio
async def test_a_server_that_died_does_not_keep_others_from_being_stopped(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(counter: int) -> bool:
        raise OSError("the server broke")

    front = make_front(tiny_checkpoint)
    await front.start()
    assert await grpc_code(front.admin_address) is grpc.StatusCode.OK
    monkeypatch.setattr(front._http._server, "on_tick", broken)
    assert str(await front.failure()) == "the server broke"
    await front.stop(1)
    assert await grpc_code(front.admin_address) is grpc.StatusCode.UNAVAILABLE
    for address in (front.http_address, front.status_address):
        async with make_client(f"http://{address}") as http:
            with pytest.raises(httpx2.ConnectError):
                await http.get("/health")
