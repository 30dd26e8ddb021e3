"""Calls are made in threads of their own, so that Ctrl-C cannot break them in the middle.

grpc's synchronous calls wait under locks that are shared by a channel's calls. KeyboardInterrupt
is raised in the main thread wherever that happens to be; between taking such a lock and the block
that releases it, it leaves the lock taken for good, and the channel's next call waits for ever.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

_Piece = TypeVar("_Piece")


@dataclass(frozen=True, slots=True)
class _Came(Generic[_Piece]):
    piece: _Piece


def iterate_apart(make: Callable[[], Iterable[_Piece]]) -> Iterator[_Piece]:
    """What `make()` gives, as it comes; what it raises is raised here.

    An interrupt ends the waiting alone: who is interrupted has to end the call too.
    """
    # This queue is of C code without locks that an interrupt could leave behind.
    pieces: SimpleQueue[_Came[_Piece] | BaseException | None] = SimpleQueue()

    def read() -> None:
        try:
            for piece in make():
                pieces.put(_Came(piece))
        except BaseException as error:
            pieces.put(error)
        else:
            pieces.put(None)

    Thread(target=read, name="omniserve-call", daemon=True).start()
    while (came := pieces.get()) is not None:
        if isinstance(came, BaseException):
            raise came
        yield came.piece


def call_apart(make: Callable[[], _Piece]) -> _Piece:
    """What `make()` returns; what it raises is raised here."""
    return next(iterate_apart(lambda: (make(),)))
