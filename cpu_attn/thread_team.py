"""Threads that stay, for running a compiled callback on several cores at once."""

import ctypes
import threading
from itertools import repeat
from queue import SimpleQueue
from types import TracebackType
from typing import Any

MAX_THREADS = 512

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Run:
    """A callback, its argument, and how many helpers have ended."""

    def __init__(self, callback: Any, task_address: int) -> None:
        self._callback = callback
        self._task_address = task_address
        self._ended: list[None] = []
        self._wakes: SimpleQueue[None] = SimpleQueue()

    def help(self) -> None:
        try:
            self._callback(self._task_address)
        finally:
            self._ended.append(None)
            self._wakes.put(None)

    def wait(self, num_helpers: int) -> None:
        """Through Ctrl-C and what signal handlers raise: others write to what the caller frees.

        Raises the last of these when all have ended.
        """
        interrupt: BaseException | None = None
        # Wakes are not counted, for one can be taken and lost to an interrupt.
        while len(self._ended) < num_helpers:
            try:
                self._wakes.get()
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


class ThreadTeam:
    """The calling thread and num_threads - 1 others; ctypes lets go of the interpreter's lock.

    One run at a time: a second caller waits.
    """

    def __init__(self, num_threads: int) -> None:
        """Raises ValueError where num_threads is not in 1..MAX_THREADS."""
        if not 1 <= num_threads <= MAX_THREADS:
            raise ValueError(f"num_threads {num_threads}: 1 to {MAX_THREADS} are possible")
        self.num_threads = num_threads
        self._lock = threading.Lock()
        self._closed = False
        self._inboxes: list[SimpleQueue[_Run | None]] = [
            SimpleQueue() for _ in range(num_threads - 1)
        ]
        self._threads = [
            threading.Thread(target=_work, args=(inbox,), name=f"cpu-attn-{index}", daemon=True)
            for index, inbox in enumerate(self._inboxes, start=1)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, address: int, task_address: int, *, at_most: int | None = None) -> None:
        """Calls `void (*)(int64_t *task)` once on each thread and returns when all have returned.

        `at_most`: no more threads than this, where the task has fewer items. Raises RuntimeError
        after `close`.
        """
        callback = _CALLBACK(address)
        num_helpers = len(self._inboxes) if at_most is None else at_most - 1
        with self._lock:
            if self._closed:
                raise RuntimeError("this team of threads is closed")
            inboxes = self._inboxes[: max(0, num_helpers)]
            run = _Run(callback, task_address)
            asked: list[None] = []
            try:
                # In one call, amid which no signal handler runs: as many are waited for as came.
                asked.extend(map(SimpleQueue.put, inboxes, repeat(run)))
                callback(task_address)
            finally:
                run.wait(len(asked))

    def close(self) -> None:
        """Ends the threads; doing it again is harmless."""
        with self._lock:
            self._closed = True
            for inbox in self._inboxes:
                inbox.put(None)
            for thread in self._threads:
                thread.join()
            self._inboxes, self._threads = [], []

    def __enter__(self) -> "ThreadTeam":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _work(inbox: "SimpleQueue[_Run | None]") -> None:
    while (run := inbox.get()) is not None:
        run.help()
