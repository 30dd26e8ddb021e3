"""One running request: its sequences in the engine, and what they give, merged for the client."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from omniserve.engine_streams import OutputSink
from omniserve.errors import (
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    OmniServeError,
    Overloaded,
    RequestCancelled,
)
from omniserve.generation import Choice, Chunk, GenerationResult, Usage
from omniserve.output_buffer import MAX_PENDING, OutputBuffer
from omniserve.request_record import RequestRecord
from omniserve.requests import EngineRequest, RequestOutput, TokenLogprob
from omniserve.tokenization import ModelTokenizer

_MISSED = "the deadline passed before the last token"
_AHEAD_S = 0.05
"""A client that waits for so long and no longer gives up by its own clock, which began earlier."""


class Generates(Protocol):
    """The part of the engine's client that a stream needs."""

    def submit(self, request: EngineRequest, sink: OutputSink) -> None: ...
    def abort(self, request_id: str) -> None: ...


class GenerationStream:
    """An asynchronous iterator of chunks, to be used in `async with`.

    The engine starts when the block is entered. When it is left, whatever the reason, nothing of
    the request runs any more. Iteration raises the OmniServeError that ended the request.
    """

    def __init__(
        self,
        engine: Generates,
        sequences: tuple[EngineRequest, ...],
        record: RequestRecord,
        tokenizer: ModelTokenizer,
        clock: Callable[[], float] = time.monotonic,
        max_pending: int = MAX_PENDING,
    ) -> None:
        """`max_pending` of what is generated may wait for the client, as OutputBuffer counts."""
        self.request_id = record.request_id
        self.model = record.model
        self.tokenizer = tokenizer
        self.num_choices = len(sequences)
        self._engine = engine
        self._sequences = sequences
        self._record = record
        record.hold_to(sequences[0])
        self._buffer = OutputBuffer(max_pending)
        self._num_unfinished = len(sequences)
        self._num_taken_tokens = 0
        self._num_running = len(sequences)
        self._deadline_s = sequences[0].deadline_s
        self._clock = clock
        self._alarm: asyncio.TimerHandle | None = None
        self._has_failed = False

    @property
    def tier(self) -> str:
        """The tier that serves it; of a request with several sequences, the fallback if it serves
        one of them. It may change until the last output."""
        return self._record.fallback or self._record.tier

    async def __aenter__(self) -> Self:
        if self._deadline_s is not None:
            loop = asyncio.get_running_loop()
            left_s = max(0.0, self._deadline_s - self._clock())
            self._alarm = loop.call_later(left_s, self._miss_deadline)
        if self._has_failed:
            # Its model was unloaded before it could begin.
            return self
        try:
            for index, sequence in enumerate(self._sequences):
                self._engine.submit(sequence, _ChoiceSink(self, index))
        except Exception as error:
            self.fail(error)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and self._num_unfinished:
            error = RequestCancelled("the client stopped reading")
        if isinstance(error, asyncio.CancelledError) and self._is_time_up:
            error = DeadlineExceeded(_MISSED)
        self._stop_alarm()
        self._record.end(error)
        self._abort()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if not self._num_unfinished:
            raise StopAsyncIteration
        index, output = await self._buffer.take()
        if output.finish_reason is not None:
            self._num_unfinished -= 1
        if output.token_ids and not self._num_taken_tokens:
            self._record.on_first_token_taken()
        self._num_taken_tokens += len(output.token_ids)
        return Chunk(
            index=index,
            text=output.text,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
            usage=None if self._num_unfinished else self._record.usage,
            tier="" if self._num_unfinished else self.tier,
        )

    @property
    def usage_so_far(self) -> Usage:
        """Of the chunks that were taken; the engine may be ahead of them."""
        usage, num_taken = self._record.usage, self._num_taken_tokens
        num_piggybacked = min(usage.num_piggybacked_tokens, num_taken)
        return replace(usage, num_output_tokens=num_taken, num_piggybacked_tokens=num_piggybacked)

    async def result(self) -> GenerationResult:
        """Everything, once it is complete."""
        chunks: list[list[Chunk]] = [[] for _ in self._sequences]
        async for chunk in self:
            chunks[chunk.index].append(chunk)
        choices = tuple(_choice(index, parts) for index, parts in enumerate(chunks))
        return GenerationResult(choices, self._record.usage)

    def put(self, index: int, output: RequestOutput) -> None:
        """The engine gave this for a choice; whatever is wrong with it ends the whole request."""
        try:
            if output.finish_reason is not None:
                _raise_if_failed(output)
            self._record.on_output(index, output)
            self._buffer.put(index, output)
        # Also what nobody expects: without this the client would wait for ever.
        except Exception as error:
            self.fail(error)
            return
        if output.finish_reason is not None:
            self._num_running -= 1
            if not self._num_running:
                # All is there in time, however late the client takes it.
                self._stop_alarm()

    def fail(self, error: Exception) -> None:
        """Ends the request, once what was given before is taken; the first error counts."""
        self._has_failed = True
        self._buffer.fail(error)
        self._record.on_failure()
        self._abort()

    def _miss_deadline(self) -> None:
        self.fail(DeadlineExceeded(_MISSED))

    @property
    def _is_time_up(self) -> bool:
        deadline_s = self._deadline_s
        return deadline_s is not None and self._clock() >= deadline_s - _AHEAD_S

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _abort(self) -> None:
        for sequence in self._sequences:
            self._engine.abort(sequence.request_id)


class _ChoiceSink:
    """What the engine is given for one sequence."""

    __slots__ = ("_index", "_stream")

    def __init__(self, stream: GenerationStream, index: int) -> None:
        self._stream = stream
        self._index = index

    def put(self, output: RequestOutput) -> None:
        self._stream.put(self._index, output)

    def fail(self, error: Exception) -> None:
        self._stream.fail(error)


def _raise_if_failed(output: RequestOutput) -> None:
    failure: OmniServeError
    if output.retry_after_s is not None:
        failure = Overloaded(output.error or "the server is overloaded", output.retry_after_s)
    elif output.missed_deadline:
        failure = DeadlineExceeded(output.error or _MISSED)
    elif output.is_unavailable:
        failure = EngineUnavailable(output.error or "the model was unloaded; try again later")
    elif output.finish_reason == "error":
        failure = EngineError(output.error or "the engine failed on this request")
    elif output.finish_reason == "cancelled":
        failure = RequestCancelled("the engine cancelled the request")
    else:
        return
    raise failure


def _choice(index: int, parts: list[Chunk]) -> Choice:
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    for part in parts:
        token_ids.extend(part.token_ids)
        logprobs.extend(part.logprobs)
    return Choice(
        index=index,
        text="".join(part.text for part in parts),
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        finish_reason=parts[-1].finish_reason,
        stop_reason=parts[-1].stop_reason,
    )
