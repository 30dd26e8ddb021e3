"""Guarded tasks: none of them ends unseen."""

import asyncio

import pytest

from omniserve.tasks import TaskGuard

PATIENCE_S = 60


async def fail() -> None:
    raise ValueError("broken")


async def end() -> None:
    pass


@pytest.mark.asyncio
async def test_an_exception_is_the_failure() -> None:
    guard = TaskGuard()
    guard.spawn(asyncio.sleep(3600), "sound")
    guard.spawn(fail(), "broken")
    async with asyncio.timeout(PATIENCE_S):
        assert isinstance(await guard.failure(), ValueError)
    await guard.cancel()


@pytest.mark.asyncio
async def test_a_plain_end_is_a_failure_that_names_the_task() -> None:
    guard = TaskGuard()
    guard.spawn(end(), "watcher")
    async with asyncio.timeout(PATIENCE_S):
        assert "'watcher' ended" in str(await guard.failure())


@pytest.mark.asyncio
async def test_cancelling_is_no_failure_and_waits_for_the_end() -> None:
    guard = TaskGuard()
    task = guard.spawn(asyncio.sleep(3600), "sound")
    await asyncio.sleep(0)
    await guard.cancel()
    assert task.cancelled()
    waiting = asyncio.ensure_future(guard.failure())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.asyncio
async def test_the_failure_can_be_awaited_again_after_a_cancelled_wait() -> None:
    guard = TaskGuard()
    waiting = asyncio.ensure_future(guard.failure())
    await asyncio.sleep(0)
    waiting.cancel()
    guard.spawn(fail(), "broken")
    async with asyncio.timeout(PATIENCE_S):
        assert str(await guard.failure()) == "broken"
