"""Outputs between the engine's pace and the client's: merged while they wait, and bounded."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from omniserve.errors import ClientTooSlow
from omniserve.requests import RequestOutput, TokenLogprob

MAX_PENDING = 32_768
"""What may wait for one client before it is cut off: tokens, alternatives, blocks of text.

Merged it has to stay well below 4 MiB, which is all that a gRPC client accepts in one message.
"""
CHARS_PER_BLOCK = 16


@dataclass(slots=True)
class _Pending:
    """Merged outputs of one choice. `last` holds the counts and reasons of the newest."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: RequestOutput | None = None
    size: int = 0


class OutputBuffer:
    """Holds what a client has not taken yet: at most one merged output for each choice.

    One task takes; any number put. An error is raised once everything before it was taken.
    """

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._num_pending = 0
        self._choices: OrderedDict[int, _Pending] = OrderedDict()
        self._error: BaseException | None = None
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<OutputBuffer {len(self._choices)} choices, {self._num_pending} pending>"

    def put(self, index: int, output: RequestOutput) -> None:
        """Adds an output of a choice; raises ClientTooSlow when too much waits already."""
        size = _size(output)
        if self._num_pending and self._num_pending + size > self._max_pending:
            raise ClientTooSlow("the client left too much of what was generated for it unread")
        pending = self._choices.setdefault(index, _Pending())
        pending.texts.append(output.text)
        pending.token_ids.extend(output.token_ids)
        pending.logprobs.extend(output.logprobs)
        pending.last = output
        pending.size += size
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
        index, pending = self._choices.popitem(last=False)
        self._num_pending -= pending.size
        return index, _merged(pending)


def _size(output: RequestOutput) -> int:
    num_alternatives = sum(len(entry.top) for entry in output.logprobs)
    return len(output.token_ids) + num_alternatives + len(output.text) // CHARS_PER_BLOCK


def _merged(pending: _Pending) -> RequestOutput:
    last = pending.last
    assert last is not None
    if len(pending.texts) == 1:
        return last
    return replace(
        last,
        text="".join(pending.texts),
        token_ids=tuple(pending.token_ids),
        logprobs=tuple(pending.logprobs),
    )
