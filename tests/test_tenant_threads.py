"""Whose turn it is on threads that several tenants share."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from service_builders import until

from omniserve.tenant_threads import TenantThreads


class Work:
    """Pieces of work that say who ran, and end when they are told to."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._gate = threading.Semaphore(0)

    def piece(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.began.append(name)
            self._gate.acquire()
            return name

        return run

    def end(self, num_pieces: int = 1) -> None:
        self._gate.release(num_pieces)


@pytest.mark.asyncio
async def test_tenants_take_turns() -> None:
    threads, work = TenantThreads(1), Work()
    asked = ["alpha"] * 4 + ["beta"] * 2 + ["gamma"]
    pieces = [asyncio.create_task(threads.run(each, work.piece(each))) for each in asked]
    work.end(len(asked))
    assert await asyncio.gather(*pieces) == asked
    assert work.began == ["alpha", "beta", "gamma", "alpha", "beta", "alpha", "alpha"]


@pytest.mark.asyncio
async def test_one_tenant_has_all_threads_until_others_come() -> None:
    threads, work = TenantThreads(2), Work()
    pieces = [asyncio.create_task(threads.run("alpha", work.piece("alpha"))) for _ in range(5)]
    await until(lambda: len(work.began) == 2)
    pieces += [asyncio.create_task(threads.run("beta", work.piece("beta"))) for _ in range(2)]
    await asyncio.sleep(0)
    work.end()
    await until(lambda: len(work.began) == 3)
    assert work.began == ["alpha", "alpha", "beta"]
    work.end(6)
    await asyncio.gather(*pieces)


@pytest.mark.asyncio
async def test_who_gives_up_frees_a_thread_when_its_work_has_ended() -> None:
    threads, work = TenantThreads(1), Work()
    running, waiting, last = (
        asyncio.create_task(threads.run(each, work.piece(each))) for each in ("a", "b", "c")
    )
    await until(lambda: work.began == ["a"])
    for given_up in (running, waiting):
        given_up.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert work.began == ["a"]
    work.end(2)
    assert await last == "c"
    assert work.began == ["a", "c"]


@pytest.mark.asyncio
async def test_who_gives_up_as_its_turn_comes_takes_no_thread() -> None:
    threads, work = TenantThreads(1), Work()
    first = asyncio.create_task(threads.run("a", work.piece("a")))
    second = asyncio.create_task(threads.run("b", work.piece("b")))
    await until(lambda: work.began == ["a"])
    first.add_done_callback(lambda _: second.cancel())
    work.end(2)
    await asyncio.gather(first, second, return_exceptions=True)
    assert await threads.run("c", lambda: "c") == "c"


@pytest.mark.asyncio
async def test_what_work_raises_reaches_its_tenant() -> None:
    threads = TenantThreads(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 // 0)
