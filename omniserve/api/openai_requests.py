"""Bodies of the OpenAI API, checked for shape here and for sense by the service."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from omniserve.access.caller import Caller
from omniserve.api.openai_unsupported import check_chat_features, check_completion_features
from omniserve.api.usage_events import UsageEvents
from omniserve.chat import ChatMessage
from omniserve.errors import InvalidRequest
from omniserve.generation import ChatPrompt, GenerationRequest, Prompt
from omniserve.requests import SamplingParams

COMPLETION_DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default for /v1/completions."""
MAX_PARAM_CHARS = 128


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What comes with a body: headers, whoever sent them, and when the request arrived."""

    tier: str | None
    caller: Caller
    request_id: str
    arrival_s: float


def _stop_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    raise PydanticCustomError("stop", "must be a string or a list of strings")


def _prompts(value: object) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (value,)
    if _is_token_list(value):
        return (tuple(value),)
    if isinstance(value, list) and value:
        if all(isinstance(entry, str) for entry in value):
            return tuple(value)
        if all(_is_token_list(entry) for entry in value):
            return tuple(tuple(entry) for entry in value)
    text = "must be a string, a list of strings, a list of token ids or a list of such lists"
    raise PydanticCustomError("prompt", text)


def _is_token_list(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of at least one integer; a boolean is none."""
    return isinstance(value, list) and bool(value) and all(type(entry) is int for entry in value)


def _content(value: object) -> str:
    """A message's text; several text parts are lines of it."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            context = {"kind": repr(kind)[:64]}
            raise PydanticCustomError(
                "content", "a part of type {kind} is not supported; allowed: text", context
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("content", "a text part must have a string as its text")
        texts.append(part["text"])
    return "\n".join(texts)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(_Body, ABC):
    """Fields of both routes. The last group is accepted and has no effect."""

    model: str = ""
    """Empty: the default of the tier or of the tenant."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stop_strings)] | None = None
    logit_bias: dict[int, float] | None = None
    service_tier: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    deadline_ms: int | None = None

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    @abstractmethod
    def to_request(self, head: RequestHead) -> GenerationRequest:
        """The request in the service's words; raises InvalidRequest for unsupported features."""

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The fields that are set; the others keep the defaults of SamplingParams."""
        plain = {
            name: value
            for name in (
                *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"),
                *("top_k", "min_p", "repetition_penalty", "ignore_eos", "logit_bias", "stop"),
            )
            if (value := getattr(self, name)) is not None
        }
        return SamplingParams(
            **plain,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            max_tokens=max_tokens,
            logprobs=logprobs,
        )

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def usage_events(self) -> UsageEvents:
        options = self.stream_options
        if options is None or not options.include_usage:
            return UsageEvents.NONE
        return UsageEvents.ALL if options.continuous_usage_stats else UsageEvents.LAST

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises InvalidRequest for what is not JSON of this shape."""
        try:
            parsed = cls.model_validate_json(body)
        except ValidationError as error:
            raise _invalid(error) from None
        if parsed.stream_options is not None and not parsed.stream:
            message = "stream_options: is allowed only together with stream"
            raise InvalidRequest(message, "stream_options")
        options = parsed.stream_options
        if options and options.continuous_usage_stats and not options.include_usage:
            message = "stream_options.continuous_usage_stats: needs include_usage"
            raise InvalidRequest(message, "stream_options")
        return parsed


class CompletionBody(GenerationBody):
    """Body of POST /v1/completions."""

    prompt: Annotated[tuple[Any, ...], BeforeValidator(_prompts)]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def to_request(self, head: RequestHead) -> GenerationRequest:
        check_completion_features(self.echo, self.best_of, self.suffix, self.num_choices)
        return GenerationRequest(
            model=self.model,
            prompts=self.prompt,
            sampling=self.sampling(self.max_tokens, self.logprobs),
            n=self.num_choices,
            tier=self.service_tier or head.tier,
            request_id=head.request_id,
            default_max_tokens=COMPLETION_DEFAULT_MAX_TOKENS,
            arrival_s=head.arrival_s,
            caller=head.caller,
            deadline_ms=self.deadline_ms,
        )


class MessageBody(_Body):
    """One message; what only tool calls and audio use has to be empty."""

    role: str
    content: Annotated[str, BeforeValidator(_content)]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_call_id: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: list[Any] | None = None


class ChatBody(GenerationBody):
    """Body of POST /v1/chat/completions."""

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Any = None
    tools: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    def to_request(self, head: RequestHead) -> GenerationRequest:
        check_chat_features(self)
        messages = tuple(
            # OpenAI's newer name of the system role; templates know only the old one.
            ChatMessage("system" if said.role == "developer" else said.role, said.content)
            for said in self.messages
        )
        return GenerationRequest(
            model=self.model,
            prompts=(ChatPrompt(messages),),
            sampling=self.sampling(self._max_tokens(), self._num_logprobs()),
            n=self.num_choices,
            tier=self.service_tier or head.tier,
            request_id=head.request_id,
            arrival_s=head.arrival_s,
            caller=head.caller,
            deadline_ms=self.deadline_ms,
        )

    def _max_tokens(self) -> int | None:
        if self.max_completion_tokens is None:
            return self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            message = "max_tokens: contradicts max_completion_tokens; set one of them"
            raise InvalidRequest(message, "max_tokens")
        return self.max_completion_tokens

    def _num_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs is not None:
            message = "top_logprobs: is allowed only together with logprobs"
            raise InvalidRequest(message, "top_logprobs")
        return None


def _invalid(error: ValidationError) -> InvalidRequest:
    """The first problem; what the client sent is not repeated."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['ctx']['error']}")
    param = ""
    for step in first["loc"]:
        if step == "[key]":
            continue
        param += f"[{step}]" if isinstance(step, int) else f".{step}" if param else str(step)
    # Keys are the client's own words, of any kind and length.
    param = "".join(filter(str.isprintable, param[:MAX_PARAM_CHARS]))
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{param}: unknown field", param)
    text = first["msg"].replace("Input should", "must").replace("Field required", "is required")
    return InvalidRequest(f"{param or 'body'}: {text}", param or None)
