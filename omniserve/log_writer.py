"""Logs that are written by a thread of their own, for a process that must never wait for their
reader."""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from omniserve.logs import event_record

MAX_WAITING_BYTES = 4 << 20
"""Of lines that are not written yet; what comes on top is dropped."""
FLUSH_S = 2.0
"""How long the end of the process may wait for whoever reads its log."""


class LogWriter(logging.Handler):
    """Formats at once and writes later, straight to a descriptor, so that a writing that never
    ends holds no lock.

    Once a line had to be dropped, so are all until the others are written: then a line tells how
    many are missing, in their place.
    """

    def __init__(
        self,
        descriptor: int,
        formatter: logging.Formatter | None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._max_waiting_bytes = max_waiting_bytes
        self._lines: deque[bytes] = deque()
        self._num_waiting_bytes = 0
        """Of these, and of the one that is being written."""
        self._num_dropped = 0
        self._patience_s = FLUSH_S
        self._changed = threading.Condition()
        # It may never end, and must not keep the process from ending.
        threading.Thread(target=self._write_all, name="omniserve-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            is_full = self._num_waiting_bytes + len(line) > self._max_waiting_bytes
            # A line that is longer than all that may wait is taken where none waits.
            if self._num_dropped or (is_full and self._num_waiting_bytes):
                self._num_dropped += 1
            else:
                self._append(line)
                self._changed.notify_all()

    def flush(self) -> None:
        """Returns when all is written, or nobody read it for long enough, now or before."""
        deadline_s = time.monotonic() + self._patience_s
        with self._changed:
            while self._num_waiting_bytes or self._num_dropped:
                if not self._changed.wait(max(0.0, deadline_s - time.monotonic())):
                    self._patience_s = 0.0
                    return

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._num_waiting_bytes += len(line)

    def _write_all(self) -> None:
        while True:
            line = self._next()
            # A log that cannot be written stops nothing.
            with suppress(OSError):
                _write(self._descriptor, line)
            with self._changed:
                self._num_waiting_bytes -= len(line)
                self._changed.notify_all()

    def _next(self) -> bytes:
        with self._changed:
            while not self._lines:
                if self._num_dropped:
                    self._append(self._line(_dropped(self._num_dropped)))
                    self._num_dropped = 0
                else:
                    self._changed.wait()
            return self._lines.popleft()


@contextmanager
def written_in_background() -> Iterator[None]:
    """Within it logs go to stderr by a thread; at its end they are written.

    They are configured already.
    """
    root = logging.getLogger()
    (before,) = root.handlers
    try:
        writer = LogWriter(sys.stderr.fileno(), before.formatter)
    # There is none, or it is not a file.
    except (AttributeError, OSError):
        yield
        return
    root.handlers[:] = [writer]
    try:
        yield
    finally:
        writer.flush()
        root.handlers[:] = [before]


def _dropped(num_lines: int) -> logging.LogRecord:
    return event_record(logging.WARNING, "log_lines_dropped", num=num_lines)


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
