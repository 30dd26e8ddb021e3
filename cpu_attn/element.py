"""Element types of keys and values in memory."""

from enum import IntEnum


class Element(IntEnum):
    """Numbers are part of compiled kernels' signatures."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2

    @property
    def num_bytes(self) -> int:
        return 4 if self is Element.FLOAT32 else 2
