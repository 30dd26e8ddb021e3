"""Calls in threads of their own: what comes, what is raised, and an interrupt while waiting."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from omniserve.commands.call_thread import call_apart, iterate_apart


def test_what_comes_and_what_is_raised_comes_here() -> None:
    def pieces() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    came = []
    with pytest.raises(ValueError, match="no more"):
        for piece in iterate_apart(pieces):
            came.append(piece)
    assert came == [1, 2]
    assert call_apart(threading.get_ident) != threading.get_ident()


def test_an_interrupt_leaves_what_runs_alone() -> None:
    may_go_on, went_on = threading.Event(), threading.Event()

    def waits() -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        may_go_on.wait(60)
        went_on.set()

    with pytest.raises(KeyboardInterrupt):
        call_apart(waits)
    assert not went_on.is_set()
    may_go_on.set()
    assert went_on.wait(60)
