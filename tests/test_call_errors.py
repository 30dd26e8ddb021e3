"""What commands make of calls that fail, with real servers that fail them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from omniserve.commands.connection import Connection
from omniserve.commands.exit_status import (
    EXIT_ACCESS,
    EXIT_FAILURE,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    exit_status_of,
)
from omniserve.errors import OmniServeError, Overloaded
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc


class Failing(omniserve_pb2_grpc.AdminServicer):
    """Fails the only method that it has with one status."""

    def __init__(self, status: status_pb2.Status | grpc.StatusCode) -> None:
        self.status = status

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> NoReturn:
        if isinstance(self.status, grpc.StatusCode):
            context.abort(self.status, "said\x1b[2J")
        context.abort_with_status(rpc_status.to_status(self.status))


def status(code: int, retry_s: float | None = None) -> status_pb2.Status:
    """As the product's own servers send it."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason="SOME", domain="omniserve"))
    details = [packed]
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1e3 * retry_s))
        retry = any_pb2.Any()
        retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        details.append(retry)
    return status_pb2.Status(code=code, message="said", details=details)


@contextmanager
def failing(how: status_pb2.Status | grpc.StatusCode) -> Iterator[Connection]:
    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        omniserve_pb2_grpc.add_AdminServicer_to_server(Failing(how), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with grpc.insecure_channel(address) as channel:
            yield Connection(address, channel)
        server.stop(None).wait()


def error_of(how: status_pb2.Status | grpc.StatusCode) -> tuple[OmniServeError, str]:
    with failing(how) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        with pytest.raises(OmniServeError) as caught:
            connection.ask(stub.GetStatus, pb.GetStatusRequest())
    return caught.value, connection.address


@pytest.mark.parametrize(
    ("how", "exit_status"),
    [
        (status(code_pb2.INVALID_ARGUMENT), EXIT_USAGE),
        (status(code_pb2.NOT_FOUND), EXIT_FAILURE),
        (status(code_pb2.UNAVAILABLE, 1.0), EXIT_UNAVAILABLE),
        (status(code_pb2.RESOURCE_EXHAUSTED, 2.5), EXIT_UNAVAILABLE),
        (status(code_pb2.RESOURCE_EXHAUSTED), EXIT_UNAVAILABLE),
        (status(code_pb2.UNAUTHENTICATED), EXIT_ACCESS),
        (status(code_pb2.PERMISSION_DENIED), EXIT_ACCESS),
        (status(code_pb2.INTERNAL), EXIT_FAILURE),
    ],
)
def test_what_the_product_says_is_passed_on(how: status_pb2.Status, exit_status: int) -> None:
    error, _ = error_of(how)
    assert (str(error), exit_status_of(error)) == ("said", exit_status)
    if isinstance(error, Overloaded):
        assert error.retry_after_s == (2.5 if len(how.details) == 2 else 0)


@pytest.mark.parametrize(
    ("code", "said", "exit_status"),
    [
        (grpc.StatusCode.UNAVAILABLE, "{} does not answer: ", EXIT_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "{} does not answer: ", EXIT_UNAVAILABLE),
        (grpc.StatusCode.CANCELLED, "{} does not answer: ", EXIT_UNAVAILABLE),
        (grpc.StatusCode.UNIMPLEMENTED, "{} does not serve this", EXIT_FAILURE),
        (grpc.StatusCode.UNAUTHENTICATED, "{} does not answer as it should", EXIT_ACCESS),
        (grpc.StatusCode.UNKNOWN, "{} does not answer as it should", EXIT_FAILURE),
    ],
)
def test_others_are_named_and_cannot_move_the_cursor(
    code: grpc.StatusCode, said: str, exit_status: int
) -> None:
    error, address = error_of(code)
    assert str(error).startswith(said.format(address))
    assert str(error).endswith(f"gRPC {code.name}: said\N{REPLACEMENT CHARACTER}[2J")
    assert exit_status_of(error) == exit_status


def test_who_does_not_answer_in_time() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with grpc.insecure_channel(address) as channel:
            stub = omniserve_pb2_grpc.AdminStub(channel)
            with pytest.raises(OmniServeError, match="does not answer") as caught:
                Connection(address, channel).ask(stub.GetStatus, pb.GetStatusRequest(), 0.2)
    assert exit_status_of(caught.value) == EXIT_UNAVAILABLE
