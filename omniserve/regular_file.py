"""Reads what a user named, without waiting for whatever else than a file stands there."""

import errno
import os
import stat
from pathlib import Path

MAX_SMALL_BYTES = 128 << 20
"""Of what describes a model: tokenizers of large vocabularies take tens of megabytes."""


def read_small_file(path: Path) -> bytes:
    """All of one of the files that describe a model. Raises as `read_regular_file` does, and
    OSError for one that is larger than any of them is."""
    content = read_regular_file(path, MAX_SMALL_BYTES)
    if len(content) > MAX_SMALL_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_SMALL_BYTES >> 20} MiB")
    return content


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """The content, or its first `max_bytes` and one more where it is larger.

    Raises OSError, also at once for a pipe, a device or a directory, and ValueError for what no
    file can be called.
    """
    # Opening a pipe without O_NONBLOCK waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    # Not open() on the number: for a directory that raises, and leaves the number open.
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
