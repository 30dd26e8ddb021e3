"""A listening socket that bounds what all its connections hold, from the moment they come."""

import socket
from collections.abc import MutableSet
from weakref import WeakSet


class BoundedListener(socket.socket):
    """Has at most so many connections open; one that comes beyond that is closed at once.

    A server counts connections once they are through with TLS, and those in their handshakes hold
    as much.
    """

    def __init__(self, family: int, kind: int, protocol: int, max_connections: int) -> None:
        super().__init__(family, kind, protocol)
        self._max_connections = max_connections
        self._open: WeakSet[_Connection] = WeakSet()

    def accept(self) -> tuple[socket.socket, object]:
        """Raises ConnectionAbortedError, upon which event loops go on, where there are too many."""
        accepted, address = super().accept()
        if len(self._open) >= self._max_connections:
            accepted.close()
            raise ConnectionAbortedError(f"{self._max_connections} connections are open")
        connection = _Connection(accepted, self._open)
        self._open.add(connection)
        return connection, address


class _Connection(socket.socket):
    """Takes the place of the socket that was accepted."""

    def __init__(self, accepted: socket.socket, others: MutableSet["_Connection"]) -> None:
        kind = (accepted.family, accepted.type, accepted.proto)
        super().__init__(*kind, fileno=accepted.detach())
        self._others = others

    def close(self) -> None:
        self._others.discard(self)
        super().close()
