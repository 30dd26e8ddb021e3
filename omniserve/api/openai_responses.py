"""Bodies and server-sent events of the OpenAI API, as JSON bytes."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from omniserve.api.usage_events import UsageEvents
from omniserve.generation import Choice, Chunk, GenerationResult, Usage
from omniserve.generation_stream import GenerationStream
from omniserve.requests import TokenLogprob
from omniserve.tokenization import ModelTokenizer

to_json = msgspec.json.Encoder().encode

STREAM_END = b"data: [DONE]\n\n"


class ResponseFormat(Protocol):
    """One route's way of writing a result."""

    def body(self, result: GenerationResult) -> bytes: ...
    def event(self, chunk: Chunk) -> bytes:
        """Zero or more events, complete with their blank lines."""
        ...

    def usage_event(self, usage: Usage) -> bytes: ...


class CompletionFormat:
    """/v1/completions."""

    def __init__(self, stream: GenerationStream, usage_events: UsageEvents) -> None:
        self._tokenizer = stream.tokenizer
        self._frame = _Frame("cmpl", "text_completion", "text_completion", stream, usage_events)
        self._offsets = [0] * stream.num_choices

    def body(self, result: GenerationResult) -> bytes:
        return self._frame.body([self._choice(choice) for choice in result.choices], result.usage)

    def event(self, chunk: Chunk) -> bytes:
        if not self._frame.is_told(chunk):
            return b""
        return self._frame.event(self._choice(chunk))

    def usage_event(self, usage: Usage) -> bytes:
        return self._frame.usage_event(usage)

    def _choice(self, part: Choice | Chunk) -> dict[str, Any]:
        return {
            "index": part.index,
            "text": part.text,
            "logprobs": self._logprobs(part.index, part.logprobs),
            "finish_reason": part.finish_reason,
        }

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not entries:
            return None
        text_of = self._tokenizer.token_text
        tokens = [text_of(entry.token_id) for entry in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {text_of(token_id): logprob for token_id, logprob in entry.top}
                | {token: entry.logprob}
                for token, entry in zip(tokens, entries, strict=True)
            ],
            "text_offset": offsets,
        }


class ChatFormat:
    """/v1/chat/completions."""

    def __init__(self, stream: GenerationStream, usage_events: UsageEvents) -> None:
        self._tokenizer = stream.tokenizer
        self._frame = _Frame(
            "chatcmpl", "chat.completion", "chat.completion.chunk", stream, usage_events
        )
        self._spoken: set[int] = set()

    def body(self, result: GenerationResult) -> bytes:
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _chat_logprobs(choice.logprobs, self._tokenizer),
                "finish_reason": choice.finish_reason,
            }
            for choice in result.choices
        ]
        return self._frame.body(choices, result.usage)

    def event(self, chunk: Chunk) -> bytes:
        if not self._frame.is_told(chunk):
            return b""
        events = b""
        if chunk.index not in self._spoken:
            self._spoken.add(chunk.index)
            events = self._event(chunk.index, {"role": "assistant", "content": ""}, None, None)
        delta = {"content": chunk.text} if chunk.text else {}
        logprobs = _chat_logprobs(chunk.logprobs, self._tokenizer)
        return events + self._event(chunk.index, delta, logprobs, chunk.finish_reason)

    def usage_event(self, usage: Usage) -> bytes:
        return self._frame.usage_event(usage)

    def _event(
        self, index: int, delta: dict[str, str], logprobs: object, finish_reason: str | None
    ) -> bytes:
        return self._frame.event(
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        )


class _Frame:
    """What all bodies and events of one response have in common."""

    def __init__(
        self,
        id_prefix: str,
        body_object: str,
        event_object: str,
        stream: GenerationStream,
        usage_events: UsageEvents,
    ) -> None:
        self._head = {
            "id": f"{id_prefix}-{stream.request_id}",
            "created": int(time.time()),
            "model": stream.model,
        }
        self._body_object = body_object
        self._event_object = event_object
        self._event_tier = ""
        self._event_start = b""
        self._stream = stream
        self._usage_events = usage_events
        self._plain_end = b"]}\n\n" if usage_events is UsageEvents.NONE else b'],"usage":null}\n\n'

    def body(self, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        head = self._head | {"service_tier": self._stream.tier, "object": self._body_object}
        body = head | {"choices": choices}
        return to_json(body | {"usage": _usage(usage)})

    def is_told(self, chunk: Chunk) -> bool:
        """Whether there is an event for a chunk, which may hold no text yet."""
        if self._usage_events is UsageEvents.ALL and chunk.token_ids:
            return True
        return bool(chunk.text or chunk.logprobs or chunk.finish_reason)

    def event(self, choice: dict[str, Any]) -> bytes:
        is_counted = self._usage_events is UsageEvents.ALL
        end = _usage_end(self._stream.usage_so_far) if is_counted else self._plain_end
        return self._start() + to_json(choice) + end

    def usage_event(self, usage: Usage) -> bytes:
        return self._start() + _usage_end(usage)

    def _start(self) -> bytes:
        """What events begin with, encoded once for each tier that serves the request."""
        tier = self._stream.tier
        if tier != self._event_tier:
            head = to_json(self._head | {"service_tier": tier, "object": self._event_object})
            self._event_tier, self._event_start = tier, b"data: " + head[:-1] + b',"choices":['
        return self._event_start


def _usage_end(usage: Usage) -> bytes:
    return b'],"usage":' + to_json(_usage(usage)) + b"}\n\n"


def _chat_logprobs(
    entries: Sequence[TokenLogprob], tokenizer: ModelTokenizer
) -> dict[str, Any] | None:
    if not entries:
        return None
    content = [
        _chat_logprob(entry.token_id, entry.logprob, tokenizer)
        | {"top_logprobs": [_chat_logprob(*other, tokenizer) for other in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _chat_logprob(token_id: int, logprob: float, tokenizer: ModelTokenizer) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "completion_tokens_details": {"piggybacked_tokens": usage.num_piggybacked_tokens},
    }
