"""The statuses that a daemon sends, until somebody has seen enough."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from omniserve.commands.call_errors import error_of_call
from omniserve.commands.call_thread import iterate_apart
from omniserve.commands.connection import Connection, open_admin
from omniserve.errors import EngineUnavailable
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc


class StatusStream:
    """An iterable; `end` may be called from another thread, and ends it."""

    def __init__(self, connection: Connection, interval_s: float) -> None:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        request = pb.WatchStatusRequest(interval_ms=round(interval_s * 1e3))
        self._address = connection.address
        self._call = stub.WatchStatus(request, metadata=connection.metadata)
        self._is_over = False

    def __iter__(self) -> Iterator[pb.Status]:
        """Raises OmniServeError where the daemon does not answer, or not any more."""
        try:
            yield from iterate_apart(lambda: self._call)
        except grpc.RpcError as error:
            if self._is_over:
                return
            raise error_of_call(error, self._address) from None
        if not self._is_over:
            raise EngineUnavailable(f"{self._address} does not answer any more")

    def end(self) -> None:
        """No more is to come."""
        self._is_over = True
        self._call.cancel()


@contextmanager
def watching(args: argparse.Namespace) -> Iterator[StatusStream]:
    """Over a connection of its own: a later one finds a daemon that has come back at once.

    Raises ConfigError where no daemon is found.
    """
    with open_admin(args) as connection:
        stream = StatusStream(connection, args.interval_s)
        try:
            yield stream
        finally:
            stream.end()
