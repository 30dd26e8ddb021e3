"""Cores that the device lends to host attention while somebody is there."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from omniserve.piggyback.core_split import CoreSplit

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, CORES)


def state() -> tuple[int, list[int]]:
    return torch.get_num_threads(), sorted(os.sched_getaffinity(0))


def test_the_device_lends_its_cores_and_takes_them_back() -> None:
    torch.set_num_threads(len(CORES))
    split = CoreSplit(CORES[-1:])
    assert split.costs_device_threads
    before = state()
    split.update(is_split=False)
    assert state() == before
    split.update(is_split=True)
    assert state() == (len(CORES) - 1, CORES[:-1])
    split.update(is_split=False)
    assert state() == before


def test_a_device_that_leaves_cores_free_keeps_off_the_hosts_for_good() -> None:
    torch.set_num_threads(1)
    split = CoreSplit(CORES[-1:])
    assert not split.costs_device_threads
    assert state() == (1, CORES[:-1])
    split.update(is_split=False)
    assert state() == (1, CORES[:-1])
    split.unite()


def cores_of_threads(helper: threading.Thread) -> tuple[set[int], list[set[int]]]:
    """Of a thread of Python's, and of the calling one and all that Python did not start."""
    mine = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
    cores = []
    for name in os.listdir("/proc/self/task"):
        if int(name) not in mine:
            with suppress(ProcessLookupError):
                cores.append(os.sched_getaffinity(int(name)))
    assert helper.native_id is not None
    return os.sched_getaffinity(helper.native_id), cores


def test_compute_threads_that_stay_keep_off_the_hosts_cores_too() -> None:
    torch.set_num_threads(len(CORES))
    # Torch's threads start with the first work for them.
    torch.ones(1 << 20).sum()
    ended = threading.Event()
    helper = threading.Thread(target=ended.wait)
    helper.start()
    split = CoreSplit(CORES[-1:])
    try:
        split.update(is_split=True)
        of_helper, others = cores_of_threads(helper)
        assert of_helper == set(CORES), "not the device's to move"
        assert len(others) >= len(CORES)
        assert all(each == set(CORES[:-1]) for each in others)
        split.unite()
        assert all(each == set(CORES) for each in cores_of_threads(helper)[1])
    finally:
        ended.set()
        helper.join()
        split.unite()
