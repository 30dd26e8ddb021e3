"""Decisions from bytes, so that a fuzzer that knows bytes alone can steer what is built of them."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class ByteSource:
    """Reads a case from its first byte to its last; what is asked for beyond that is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_empty(self) -> bool:
        return self._place >= len(self._data)

    def take(self, num_bytes: int) -> bytes:
        """The next bytes; fewer where there are no more."""
        taken = self._data[self._place : self._place + num_bytes]
        self._place += num_bytes
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def byte(self) -> int:
        return int.from_bytes(self.take(1))

    def below(self, limit: int) -> int:
        """0 to `limit` - 1, from one byte or two; 0 where the bytes are at their end."""
        return int.from_bytes(self.take(1 if limit <= 256 else 2)) % limit

    def flag(self) -> bool:
        return self.byte() % 2 == 1

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def integer(self, num_bytes: int, *, signed: bool = True) -> int:
        return int.from_bytes(self.take(num_bytes), "little", signed=signed)

    def text(self, max_chars: int) -> str:
        """UTF-8 with its errors left out: every kind of character is a few bytes away."""
        raw = self.take(self.below(max_chars + 1))
        return raw.decode("utf-8", errors="ignore")
