"""Times inside of texts: each token's text says when it was made, on the clock of all processes.

A stamp is the microsecond modulo a hundred seconds, in eight digits.
"""

import time
from collections.abc import Iterator

STAMP_CHARS = 8
_PERIOD_US = 10**STAMP_CHARS


def now_us() -> int:
    return time.monotonic_ns() // 1000


def stamp_of(at_us: int) -> bytes:
    return b"%08d" % (at_us % _PERIOD_US)


def delays_us(text: bytes, at_us: int) -> Iterator[int]:
    """How old each token of a text is at that time; a text may hold several tokens' stamps."""
    for begin in range(0, len(text), STAMP_CHARS):
        yield (at_us - int(text[begin : begin + STAMP_CHARS])) % _PERIOD_US
