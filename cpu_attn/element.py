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

    @property
    def dtype_text(self) -> str:
        """The dtype for messages, with the element's name where that is another."""
        dtype, name = self.dtype.name, self.name.lower()
        return dtype if dtype == name else f"{dtype} ({name})"


NUM_BYTES = (4, 2, 2, 1)
"""Of each element type, by its number."""
_DTYPES = tuple(np.dtype(name) for name in ("float32", "float16", "uint16", "int8"))

QUERY_ELEMENTS = (Element.FLOAT32, Element.FLOAT16, Element.BFLOAT16)
"""Those that queries and outputs may have; a cache may have any."""


def require_element(name: str, value: Any, allowed: tuple[Element, ...] = tuple(Element)) -> None:
    """Raises TypeError for what is no Element, ValueError for one that is not allowed."""
    names = ", ".join(f"Element.{element.name}" for element in allowed)
    if not isinstance(value, Element):
        raise TypeError(f"{name} {value!r}: one of {names} is needed")
    if value not in allowed:
        raise ValueError(f"{name} Element.{value.name}: one of {names} is needed")
