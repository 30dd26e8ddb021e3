"""What a stream is going to send, encoded before it is due."""

from collections import deque
from dataclasses import dataclass

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.prompts import Prompts
from omniserve.bench.load.streams import (
    BacklogStream,
    Stream,
    TraceStream,
    arrivals,
    backlog,
    sent_lengths,
)
from omniserve.bench.load.target import ModelInfo, Target, TokenRequest
from omniserve.bench.run_record import RequestRecord
from omniserve.bench.trace.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request as it goes over the wire, and the record that it will fill."""

    record: RequestRecord
    payload: bytes


class RequestMaker:
    """Makes the requests of one stream; counts those that the model was too short for."""

    def __init__(self, stream: Stream, model: ModelInfo, target: Target, seed: int) -> None:
        self._stream = stream
        self._model = model
        self._target = target
        self._prompts = Prompts(seed, stream.info.name, model.vocab_size)
        self.num_clipped = 0

    def make(self, index: int, scheduled_s: float, request: TraceRequest) -> PlannedRequest:
        lengths = sent_lengths(request, self._model.max_model_len)
        if lengths.prompt_tokens < request.prompt_tokens:
            self.num_clipped += 1
        info = self._stream.info
        token_ids = self._prompts.token_ids(index, lengths.prompt_tokens, request.prefix_hashes)
        payload = self._target.encode(
            TokenRequest(
                model=info.model,
                token_ids=token_ids,
                max_tokens=lengths.max_tokens,
                tier=request.tier or info.tier,
                extra_body=self._stream.extra_body,
            )
        )
        record = RequestRecord(
            stream=info.name,
            index=index,
            scheduled_s=scheduled_s,
            prompt_tokens=lengths.prompt_tokens,
            max_tokens=lengths.max_tokens,
        )
        return PlannedRequest(record, payload)


def planned_arrivals(
    stream: TraceStream, maker: RequestMaker, options: LoadOptions
) -> list[PlannedRequest]:
    """All requests of an open loop, in the order in which they are due."""
    timed = arrivals(stream, options.duration_s, options.warm_up_s)
    return [maker.make(index, at_s, request) for index, (at_s, request) in enumerate(timed)]


class Supply:
    """A backlog's requests in turn. The first ones are made at once: they go out together."""

    def __init__(self, stream: BacklogStream, maker: RequestMaker) -> None:
        self._requests = enumerate(backlog(stream))
        self._maker = maker
        self._ready = deque(self._next() for _ in range(stream.concurrency))

    def take(self, now_s: float) -> PlannedRequest:
        planned = self._ready.popleft() if self._ready else self._next()
        planned.record.scheduled_s = now_s
        return planned

    def _next(self) -> PlannedRequest:
        index, request = next(self._requests)
        return self._maker.make(index, 0.0, request)
