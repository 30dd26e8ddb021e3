"""What is sent during a run: traces at their own times, and backlogs kept at a constant depth."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omniserve.bench.run_record import StreamInfo
from omniserve.bench.trace.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class TraceStream:
    """An open loop: every request is sent when its trace says so, whatever the server does.

    The trace's second 0 is the beginning of the warm-up; what arrives after the measured part is
    not sent.
    """

    info: StreamInfo
    trace: Trace
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields for the body of OpenAI requests, such as vLLM's `priority`."""


@dataclass(frozen=True, slots=True)
class BacklogStream:
    """A closed loop: `concurrency` requests are always with the server, from the warm-up on.

    They are the trace's, in turn and again from its beginning; its times do not matter.
    """

    info: StreamInfo
    lengths: Trace
    concurrency: int
    """At least 1."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)


Stream = TraceStream | BacklogStream


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one request as it is sent."""

    prompt_tokens: int
    max_tokens: int


def arrivals(
    stream: TraceStream, duration_s: float, warm_up_s: float
) -> list[tuple[float, TraceRequest]]:
    """The requests to send, with the times at which to send them: seconds since the measured part
    began, from -warm_up_s to before duration_s."""
    timed = ((request.arrival_s - warm_up_s, request) for request in stream.trace)
    return list(itertools.takewhile(lambda entry: entry[0] < duration_s, timed))


def backlog(stream: BacklogStream) -> Iterator[TraceRequest]:
    """The backlog's requests, without end."""
    return itertools.cycle(stream.lengths)


def sent_lengths(request: TraceRequest, max_model_len: int | None) -> Lengths:
    """What is asked for in place of the trace's lengths, where a model cannot hold them.

    A request that failed when it was recorded is sent too, for one token: it had its part in the
    load. The output is cut to half of the context at most, then the prompt to what is left.
    """
    max_tokens = max(1, request.output_tokens)
    prompt_tokens = max(1, request.prompt_tokens)
    if max_model_len is not None and prompt_tokens + max_tokens > max_model_len:
        max_tokens = min(max_tokens, max(1, max_model_len // 2))
        prompt_tokens = min(prompt_tokens, max_model_len - max_tokens)
    return Lengths(prompt_tokens, max_tokens)
