"""Python's garbage collector out of the way of a measurement."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No collection inside: a pause of many milliseconds would be told as the server's latency.

    Reference counting frees all but cycles meanwhile.
    """
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
