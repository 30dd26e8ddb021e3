"""Element types of queries, keys and values in memory."""

from enum import IntEnum


class Element(IntEnum):
    """Numbers are part of compiled kernels' signatures. INT8 is for keys and values only."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT8 = 3

    @property
    def num_bytes(self) -> int:
        return NUM_BYTES[self]


NUM_BYTES = (4, 2, 2, 1)
"""Of each element type, by its number."""
