"""The front's end of the engine's socket, with a plain one at the other end."""

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import zmq

from omniserve.engine_socket import EngineSocket

NUM_FRAMES = 1000
PATIENCE_MS = 60_000
Plain = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Ends:
    ours: EngineSocket
    theirs: Plain
    address: str

    def connect(self) -> None:
        self.theirs.connect(self.address)


@contextmanager
def both_ends() -> Iterator[Ends]:
    """The other end is not connected yet. Made inside a running loop."""
    context = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        address = f"ipc://{directory}/socket"
        bound, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        for each in (bound, theirs):
            each.set_hwm(0)
            each.setsockopt(zmq.LINGER, 0)
        theirs.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        bound.bind(address)
        ours = EngineSocket(bound)
        try:
            yield Ends(ours, theirs, address)
        finally:
            ours.close()
            theirs.close()
            context.term()


def frame(number: int) -> bytes:
    return b"%d" % number


@pytest.mark.asyncio
async def test_what_is_sent_before_the_other_end_connects_arrives_in_order() -> None:
    with both_ends() as ends:
        for number in range(NUM_FRAMES):
            ends.ours.send(frame(number))
        ends.connect()
        taking = asyncio.to_thread(lambda: [ends.theirs.recv() for _ in range(NUM_FRAMES)])
        assert await taking == [frame(number) for number in range(NUM_FRAMES)]


@pytest.mark.asyncio
async def test_a_connection_that_comes_while_the_socket_is_looked_at_is_not_missed() -> None:
    """One connection seldom comes just then; of a hundred, several do."""
    for _ in range(100):
        with both_ends() as ends:
            ends.connect()
            for number in range(30):
                ends.ours.send(frame(number))
            taking = asyncio.to_thread(
                lambda theirs: [theirs.recv() for _ in range(30)], ends.theirs
            )
            assert await taking == [frame(number) for number in range(30)]


@pytest.mark.asyncio
async def test_many_frames_come_in_order_and_others_have_their_turns() -> None:
    num_turns = 0

    async def others() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    with both_ends() as ends:
        ends.connect()
        for number in range(NUM_FRAMES):
            ends.theirs.send(frame(number))
        beside = asyncio.create_task(others())
        received: list[bytes] = []
        num_takes = 0
        async with asyncio.timeout(PATIENCE_MS / 1e3):
            while len(received) < NUM_FRAMES:
                received += await ends.ours.receive()
                num_takes += 1
        beside.cancel()
        assert received == [frame(number) for number in range(NUM_FRAMES)]
        assert 1 < num_takes <= num_turns


@pytest.mark.asyncio
async def test_no_answer_is_missed_because_something_was_sent_meanwhile() -> None:
    """The descriptor tells a change once; whatever else looks at the socket may use that up."""

    def echo(theirs: Plain) -> None:
        for _ in range(2 * NUM_FRAMES):
            theirs.send(theirs.recv())

    with both_ends() as ends:
        ends.connect()
        echoing = threading.Thread(target=echo, args=(ends.theirs,))
        echoing.start()
        received: list[bytes] = []
        async with asyncio.timeout(PATIENCE_MS / 1e3):
            for number in range(NUM_FRAMES):
                ends.ours.send(frame(2 * number))
                ends.ours.send(frame(2 * number + 1))
                while len(received) < 2 * number + 1:
                    received += await ends.ours.receive()
            while len(received) < 2 * NUM_FRAMES:
                received += await ends.ours.receive()
        echoing.join()
        assert received == [frame(number) for number in range(2 * NUM_FRAMES)]


@pytest.mark.asyncio
async def test_a_receiver_waits_for_the_first_frame() -> None:
    with both_ends() as ends:
        ends.connect()
        receiver = asyncio.create_task(ends.ours.receive())
        await asyncio.sleep(0.05)
        assert not receiver.done()
        ends.theirs.send(b"here")
        async with asyncio.timeout(PATIENCE_MS / 1e3):
            assert await receiver == [b"here"]
