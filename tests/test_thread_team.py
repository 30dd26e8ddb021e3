"""Compiled callbacks on several threads."""

import ctypes
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numba import carray, types

from cpu_attn._jit import c_callback
from cpu_attn.memory import take_number
from cpu_attn.thread_team import MAX_THREADS, ThreadTeam


@cache
def meeting_kernel() -> Any:
    """task: [arrived, wanted, left]: counts arrivals and goes on when `wanted` are there."""

    def meet(task_pointer: Any) -> None:
        task = carray(task_pointer, 3)
        address = task.ctypes.data
        take_number(address)
        # Raised by nothing: read through an atomic so that it is read again each time.
        while True:
            number = take_number(address + 16)
            if task[0] >= task[1] or number < 0:
                break

    return c_callback(types.void(types.CPointer(types.int64)))(meet)


def meet(team: ThreadTeam, wanted: int, at_most: int | None = None) -> int:
    """How many threads came."""
    task = np.array([0, wanted, 0], dtype=np.int64)
    team.run(meeting_kernel().address, task.ctypes.data, at_most=at_most)
    return int(task[0])


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_thread_runs_at_the_same_time(num_threads: int) -> None:
    """Each waits for all the others, so one after the other would never end."""
    with ThreadTeam(num_threads) as team:
        for _ in range(50):
            assert meet(team, num_threads) == num_threads


def test_no_more_threads_than_asked_for() -> None:
    with ThreadTeam(4) as team:
        assert [meet(team, 1, at_most=n) for n in (1, 2, 4, 9)] == [1, 2, 4, 4]


def test_several_callers_take_turns() -> None:
    counts: list[int] = []
    with ThreadTeam(3) as team:
        callers = [
            threading.Thread(target=lambda: counts.extend(meet(team, 3) for _ in range(30)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert counts == [3] * 120


class Interrupted(Exception):
    """What a signal handler raises, as those of time limits do."""


@pytest.fixture
def interrupting_signal() -> Iterator[signal.Signals]:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_an_interrupt_waits_for_the_helpers(interrupting_signal: signal.Signals) -> None:
    """They write to memory that the interrupted caller frees."""
    caller = threading.get_ident()
    has_begun = threading.Event()
    ended: list[int] = []

    def is_at_work() -> bool:
        frames = traceback.walk_stack(sys._current_frames()[caller])
        return any(frame.f_code is work.__code__ for frame, _ in frames)

    def work(_: object) -> None:
        if threading.get_ident() == caller:
            has_begun.set()
            return
        has_begun.wait()
        # Inside a callback ctypes would report what is raised, and go on.
        while is_at_work():
            time.sleep(0.001)
        time.sleep(0.02)
        signal.pthread_kill(caller, interrupting_signal)
        # For a caller that does not wait to be found out.
        time.sleep(0.05)
        ended.append(1)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    with ThreadTeam(3) as team:
        for repeat in range(1, 4):
            has_begun.clear()
            with pytest.raises(Interrupted):
                team.run(address, 0)
            assert len(ended) == 2 * repeat
        assert meet(team, 3) == 3


def test_closing_ends_the_threads_and_later_runs_are_refused() -> None:
    before = set(threading.enumerate())
    team = ThreadTeam(3)
    # By name: threads of others may begin meanwhile, or end.
    helpers = [each for each in threading.enumerate() if each.name.startswith("cpu-attn-")]
    helpers = [each for each in helpers if each not in before]
    assert len(helpers) == 2
    team.close()
    team.close()
    assert not any(each.is_alive() for each in helpers)
    with pytest.raises(RuntimeError, match="closed"):
        meet(team, 1)


@pytest.mark.parametrize("num_threads", [0, -1, MAX_THREADS + 1])
def test_impossible_numbers_are_named(num_threads: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads {num_threads}"):
        ThreadTeam(num_threads)
