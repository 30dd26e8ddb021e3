"""Outputs between the engine's pace and the client's: merged while they wait, and bounded."""

import asyncio
from collections import deque
from dataclasses import replace

from omniserve.errors import ClientTooSlow
from omniserve.requests import RequestOutput, TokenLogprob

MAX_PENDING = 32_768
"""What may wait for one client before it is cut off: tokens, alternatives, blocks of text."""
MAX_MERGED = 32_768
"""Of that in one output, which has to stay well below 4 MiB: a gRPC client accepts no larger
message."""
CHARS_PER_BLOCK = 16


class _Pending:
    """Merged outputs of one choice. `last` holds the counts and reasons of the newest.

    Mostly there is one output, which then goes on as it is.
    """

    __slots__ = ("_logprobs", "_texts", "_token_ids", "last", "size")

    def __init__(self, output: RequestOutput, size: int) -> None:
        self.last = output
        self.size = size
        self._texts: list[str] | None = None
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def add(self, output: RequestOutput, size: int) -> None:
        if self._texts is None:
            self._texts = [self.last.text]
            self._token_ids.extend(self.last.token_ids)
            self._logprobs.extend(self.last.logprobs)
        self._texts.append(output.text)
        self._token_ids.extend(output.token_ids)
        self._logprobs.extend(output.logprobs)
        self.last = output
        self.size += size

    def merged(self) -> RequestOutput:
        if self._texts is None:
            return self.last
        return replace(
            self.last,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )


class OutputBuffer:
    """Holds what a client has not taken yet, merged by choice as far as one message may hold it.

    One task takes; any number put. An error is raised once everything before it was taken.
    """

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._num_pending = 0
        self._choices: dict[int, _Pending] = {}
        self._full: deque[tuple[int, _Pending]] = deque()
        """Those that take no more, which are older than what the choices have."""
        self._error: BaseException | None = None
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<OutputBuffer {len(self._choices)} choices, {self._num_pending} pending>"

    def put(self, index: int, output: RequestOutput) -> None:
        """Adds an output of a choice; raises ClientTooSlow when too much waits already."""
        size = _size(output)
        if self._num_pending and self._num_pending + size > self._max_pending:
            raise ClientTooSlow("the client left too much of what was generated for it unread")
        pending = self._choices.get(index)
        if pending is None:
            self._choices[index] = _Pending(output, size)
        elif pending.size + size <= MAX_MERGED:
            pending.add(output, size)
        else:
            self._full.append((index, pending))
            self._choices[index] = _Pending(output, size)
        self._num_pending += size
        self._wake.set()

    def fail(self, error: BaseException) -> None:
        """Ends the buffer; the first error counts."""
        if self._error is None:
            self._error = error
        self._wake.set()

    async def take(self) -> tuple[int, RequestOutput]:
        """The merged output of the choice that has waited longest, and the choice's index."""
        while not self._choices:
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        if self._full:
            index, pending = self._full.popleft()
        else:
            index = next(iter(self._choices))
            pending = self._choices.pop(index)
        self._num_pending -= pending.size
        return index, pending.merged()


def _size(output: RequestOutput) -> int:
    size = len(output.token_ids) + len(output.text) // CHARS_PER_BLOCK
    if output.logprobs:
        size += sum(len(entry.top) for entry in output.logprobs)
    return size
