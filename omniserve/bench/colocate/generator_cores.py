"""Where the load generator runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from omniserve.bench.colocate.frames import Frame
from omniserve.bench.colocate.pinning import pin


@contextmanager
def on_host_cores(frame: Frame) -> Iterator[None]:
    """On an emulated accelerator this process keeps off the device's cores."""
    if not frame.is_emulated:
        yield
        return
    before = os.sched_getaffinity(0)
    pin(os.getpid(), frame.host_cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)
