"""Threads that stay, for running a compiled callback on several cores at once."""

import ctypes
import threading
from queue import SimpleQueue
from types import TracebackType
from typing import Any

MAX_THREADS = 512

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Job = tuple[Any, int]


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
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._inboxes: list[SimpleQueue[_Job | None]] = [
            SimpleQueue() for _ in range(num_threads - 1)
        ]
        self._threads = [
            threading.Thread(
                target=_work, args=(inbox, self._finished), name=f"cpu-attn-{index}", daemon=True
            )
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
            for inbox in inboxes:
                inbox.put((callback, task_address))
            try:
                callback(task_address)
            finally:
                self._wait(len(inboxes))

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

    def _wait(self, num_helpers: int) -> None:
        """Also through Ctrl-C: the others still write to memory that the caller would free."""
        interrupt: KeyboardInterrupt | None = None
        while num_helpers:
            try:
                self._finished.get()
                num_helpers -= 1
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def _work(inbox: "SimpleQueue[_Job | None]", finished: "SimpleQueue[None]") -> None:
    while (job := inbox.get()) is not None:
        callback, task_address = job
        try:
            callback(task_address)
        finally:
            finished.put(None)
