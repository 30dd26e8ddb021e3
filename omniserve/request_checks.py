"""What a request may ask for, as far as it can be told without the engine."""

from dataclasses import replace

from omniserve.access.bearer_token import without_tokens
from omniserve.access.caller import Caller
from omniserve.config_listen import LimitsConfig
from omniserve.errors import InvalidRequest
from omniserve.generation import ChatPrompt, GenerationRequest, Prompt
from omniserve.requests import SamplingParams
from omniserve.settings import ModelInfo
from omniserve.shown_number import shown_number

MAX_PROMPTS = 128
MAX_SEQUENCES = 128
"""Prompts times choices of one request."""
MAX_REQUEST_ID_CHARS = 128
MAX_TENANT_CHARS = 64
MAX_DEADLINE_MS = 86_400_000


def shown_request_id(request_id: str) -> str:
    """What others may see of it, as they may of a token that was put there by mistake: cut to the
    allowed length; empty where it does not print."""
    shown = without_tokens(request_id)[:MAX_REQUEST_ID_CHARS]
    return shown if shown.isprintable() else ""


def check_words(request_id: str, caller: Caller) -> None:
    """The words of a client that are passed on as they are; raises InvalidRequest."""
    for name, value, most_chars in (
        ("request_id", request_id, MAX_REQUEST_ID_CHARS),
        ("tenant", "" if caller.is_known else caller.tenant, MAX_TENANT_CHARS),
    ):
        if len(value) > most_chars or not value.isprintable():
            allowed = f"up to {most_chars} printable characters"
            raise InvalidRequest(f"{name}: not allowed; allowed: {allowed}", name)


def check_num_sequences(request: GenerationRequest) -> int:
    """How many there are; raises InvalidRequest."""
    num_prompts = len(request.prompts)
    if not 1 <= num_prompts <= MAX_PROMPTS:
        message = f"prompt: {num_prompts} prompts are not allowed; allowed: 1 to {MAX_PROMPTS}"
        raise InvalidRequest(message, "prompt")
    if num_prompts * request.n > MAX_SEQUENCES:
        raise InvalidRequest(
            f"n: {request.n} choices of {num_prompts} prompts are not allowed; "
            f"allowed: {MAX_SEQUENCES} sequences in all",
            "n",
        )
    return num_prompts * request.n


def deadline_s_of(request: GenerationRequest) -> float | None:
    """On the clock of the arrival; raises InvalidRequest."""
    deadline_ms, deadline_s = request.deadline_ms, request.call_deadline_s
    if deadline_ms is None:
        return deadline_s
    if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidRequest(
            f"deadline_ms: {shown_number(deadline_ms)} is not allowed; "
            f"allowed: 1 to {MAX_DEADLINE_MS}",
            "deadline_ms",
        )
    own_s = request.arrival_s + deadline_ms / 1e3
    return own_s if deadline_s is None else min(own_s, deadline_s)


def prompt_name(prompts: tuple[Prompt, ...], place: int) -> str:
    """How messages call one prompt of a request."""
    if isinstance(prompts[place], ChatPrompt):
        return "messages"
    return "prompt" if len(prompts) == 1 else f"prompt[{place}]"


def check_prompt_length(num_tokens: int, limits: LimitsConfig, name: str) -> None:
    """`name` is what messages call the prompt; raises InvalidRequest."""
    most = limits.max_prompt_tokens
    if most is not None and num_tokens > most:
        raise InvalidRequest(
            f"{name}: {num_tokens} tokens are more than this server takes; allowed: up to {most}",
            name,
        )


def choice_sampling(
    request: GenerationRequest,
    sampling: SamplingParams,
    choice: int,
    num_prompt_tokens: int,
    info: ModelInfo,
    limits: LimitsConfig,
) -> SamplingParams:
    """The sampling of one choice: its own seed, and as many tokens as context and limits allow.

    Raises InvalidRequest where more are asked for.
    """
    room = info.max_model_len - num_prompt_tokens
    most = limits.max_output_tokens
    max_tokens = sampling.max_tokens
    if max_tokens is None:
        max_tokens = min(request.default_max_tokens or room, room, most or room)
    if most is not None and max_tokens > most:
        raise InvalidRequest(
            f"max_tokens: {shown_number(max_tokens)} tokens of output are more than this server "
            f"gives; allowed: up to {most}",
            "max_tokens",
        )
    if max_tokens > room:
        raise InvalidRequest(
            f"max_tokens: {shown_number(max_tokens)} tokens of output after {num_prompt_tokens} "
            f"tokens of prompt are more than the model's context of {info.max_model_len}; "
            f"allowed: up to {room}",
            "max_tokens",
        )
    seed = None if sampling.seed is None else sampling.seed + choice
    return replace(sampling, seed=seed, max_tokens=max_tokens)
