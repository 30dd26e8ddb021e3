"""Element types of queries, keys and values in memory."""

from enum import IntEnum
from typing import Any

import numpy as np


class Element(IntEnum):
    """Numbers are part of compiled kernels' signatures. INT8 is for keys and values only."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT8 = 3

    @property
    def num_bytes(self) -> int:
        return NUM_BYTES[self]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of arrays that hold it; numpy has no bfloat16, so that one's bits are uint16."""
        return _DTYPES[self]


NUM_BYTES = (4, 2, 2, 1)
"""Of each element type, by its number."""
_DTYPES = tuple(np.dtype(name) for name in ("float32", "float16", "uint16", "int8"))
