"""The newest status for everybody who watches."""

import asyncio

import pytest

from omniserve.status.feed import MAX_WATCHERS, StatusFeed, TooManyWatchers


class Writer:
    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self) -> bytes:
        self.num_calls += 1
        return str(self.num_calls).encode()


@pytest.mark.asyncio
async def test_it_is_written_once_for_all_and_only_when_somebody_asks() -> None:
    write = Writer()
    feed = StatusFeed(write)
    feed.publish()
    feed.publish()
    assert write.num_calls == 0
    assert (feed.newest, feed.newest) == (b"1", b"1")
    feed.publish()
    assert feed.newest == b"2"


@pytest.mark.asyncio
async def test_all_who_wait_hear_of_a_change_and_late_ones_miss_it() -> None:
    feed = StatusFeed(Writer())
    waiting = [asyncio.create_task(feed.change()) for _ in range(3)]
    await asyncio.sleep(0)
    feed.publish()
    await asyncio.gather(*waiting)
    late = asyncio.create_task(feed.change())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not late.done()
    feed.close()
    await late
    await feed.change()
    assert feed.is_closed


@pytest.mark.asyncio
async def test_there_is_room_for_so_many() -> None:
    feed = StatusFeed(Writer())
    watches = [feed.watch() for _ in range(MAX_WATCHERS)]
    for watch in watches:
        watch.__enter__()
    with pytest.raises(TooManyWatchers), feed.watch():
        pass
    watches[0].__exit__(None, None, None)
    with feed.watch():
        pass
