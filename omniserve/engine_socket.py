"""The front's end of the socket to an engine process, in the event loop."""

import asyncio
from collections import deque

import zmq

_FRAMES_PER_TURN = 16
"""What is taken at once: between two turns streams go on to their clients."""


class EngineSocket:
    """Sends without waiting and receives several frames at a time. Made in the loop that uses it.

    ZeroMQ's own asyncio socket costs a future and a timer for each frame; an engine sends one for
    every step.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        """Takes the socket over; `close` must be called."""
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._unsent: deque[bytes] = deque()
        self._readable = asyncio.Event()
        self._loop.add_reader(self._descriptor, self._look)

    def send(self, frame: bytes) -> None:
        """Frames go out in order, those before the other side has connected once it has."""
        self._unsent.append(frame)
        self._look()

    async def receive(self) -> list[bytes]:
        """The frames that are there, at least one."""
        # A turn of the loop in any case: an engine that never pauses must not be all that runs.
        await asyncio.sleep(0)
        while not (frames := self._take()):
            self._readable.clear()
            self._look()
            await self._readable.wait()
        if self._unsent:
            self._look()
        return frames

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._socket.close()

    def _take(self) -> list[bytes]:
        frames: list[bytes] = []
        try:
            while len(frames) < _FRAMES_PER_TURN:
                frames.append(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        return frames

    def _look(self) -> None:
        """Sends what can be sent, and wakes the receiver where there is something for it.

        The descriptor tells a change once, and every call on the socket may swallow that: so what
        is possible is asked last, and an answer that allows to send is acted on here.
        """
        while True:
            self._send_unsent()
            events = int(self._socket.getsockopt(zmq.EVENTS))
            if not (self._unsent and events & zmq.POLLOUT):
                break
        if events & zmq.POLLIN:
            self._readable.set()

    def _send_unsent(self) -> None:
        try:
            while self._unsent:
                self._socket.send(self._unsent[0], zmq.NOBLOCK)
                self._unsent.popleft()
        except zmq.Again:
            pass
