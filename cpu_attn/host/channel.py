"""Messages with file descriptors between parent and child, over a socket of packets."""

import pickle
import socket
from array import array
from collections.abc import Sequence
from typing import Self

_MAX_MESSAGE_BYTES = 1 << 18
"""Of a model with sinks: about 10 bytes for each head of each layer."""
_MAX_FDS = 2
_FD_BYTES = array("i").itemsize


class Channel:
    """One end. A message arrives whole or not at all, and its descriptors with it.

    Only the two ends of one program speak over it; what comes is unpickled.
    """

    def __init__(self, end: socket.socket) -> None:
        """Takes the socket over."""
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MAX_MESSAGE_BYTES)
        return cls(ends[0]), cls(ends[1])

    def fileno(self) -> int:
        """-1 once closed."""
        return self._socket.fileno()

    def send(self, message: object, fds: Sequence[int] = (), *, waits: bool = False) -> bool:
        """False where there is no room for it now, unless it `waits`.

        The other end gets descriptors of its own. Raises OSError where nobody is there any more.
        """
        content = pickle.dumps(message)
        flags = socket.MSG_NOSIGNAL | (0 if waits else socket.MSG_DONTWAIT)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([content], rights, flags)
        except BlockingIOError:
            return False
        return True

    def receive(self, *, waits: bool) -> tuple[object, list[int]] | None:
        """The next message and its descriptors, which are the caller's; None where none is there.

        Raises EOFError or OSError where the other end is gone.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if waits else socket.MSG_DONTWAIT)
        room = socket.CMSG_SPACE(_MAX_FDS * _FD_BYTES)
        try:
            # Not recv_fds, which forgets the flags; nor send_fds above.
            content, rights, _, _ = self._socket.recvmsg(_MAX_MESSAGE_BYTES, room, flags)
        except BlockingIOError:
            return None
        if not content:
            raise EOFError("the other end is gone")
        fds = array("i")
        for _, _, numbers in rights:
            fds.frombytes(numbers[: len(numbers) // _FD_BYTES * _FD_BYTES])
        return pickle.loads(content), fds.tolist()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
