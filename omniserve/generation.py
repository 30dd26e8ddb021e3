"""What a client asks to be generated and what it gets, in the words of neither wire format."""

import time
from dataclasses import dataclass, field

from omniserve.access.caller import ANYONE, Caller
from omniserve.chat import ChatMessage
from omniserve.requests import FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's chat template."""

    messages: tuple[ChatMessage, ...]


Prompt = str | tuple[int, ...] | ChatPrompt
"""Text, token ids, or a chat."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request of a client: every prompt is continued `n` times."""

    model: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    tier: str | None = None
    """A tier's name, or auto, default, priority or flex; None means the model's default."""
    request_id: str = ""
    """The client's own name for the request; empty lets the service choose one."""
    default_max_tokens: int | None = None
    """Used, as far as the context leaves room, where `sampling.max_tokens` is None."""
    arrival_s: float = field(default_factory=time.monotonic)
    caller: Caller = ANYONE
    """Whose request it is: what it may use, its quota, its share of best-effort service."""
    deadline_ms: int | None = None
    """From the arrival until the last token has to be there."""
    call_deadline_s: float | None = None
    """When the client stops waiting, on the monotonic clock; the earlier of both counts."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole request. A prompt counts once, however many choices continue it."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_piggybacked_tokens: int = 0
    """Output tokens whose decode attention ran on the host."""


@dataclass(slots=True)
class Chunk:
    """What is added to one choice. Choice `index` continues prompt `index // n`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    """On the last chunk of the request only."""
    tier: str = ""
    """On the last chunk of the request only: the tier that served it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole continuation."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    choices: tuple[Choice, ...]
    usage: Usage
