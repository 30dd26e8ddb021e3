"""One engine process and the socket to it."""

import asyncio

import pytest
import zmq

from omniserve.engine_process_handle import EngineProcessHandle
from omniserve.messages import Shutdown


@pytest.mark.asyncio
async def test_a_close_that_is_cancelled_still_closes_the_socket() -> None:
    context = zmq.Context()
    handle = await EngineProcessHandle.spawn(("/bin/sh", "-c", "sleep 60"), context, {})
    closing = asyncio.create_task(handle.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await handle.wait()
    with pytest.raises(zmq.ZMQError):
        handle.send(Shutdown())
    context.term()
