"""What a model can take of a request: checked once, where the request enters the engine."""

from omniserve.errors import InvalidRequest
from omniserve.requests import EngineRequest
from omniserve.settings import ModelInfo


def check_prompt(request: EngineRequest, info: ModelInfo) -> None:
    """Raises InvalidRequest where the prompt is empty, too long, or not of this vocabulary."""
    prompt = request.prompt_token_ids
    if not prompt:
        raise InvalidRequest("prompt: is empty; at least one token is needed", "prompt")
    if len(prompt) >= info.max_model_len:
        raise InvalidRequest(
            f"prompt: {len(prompt)} tokens leave no room for output in the {info.max_model_len} "
            f"tokens of model {info.name!r}",
            "prompt",
        )
    max_tokens = request.sampling.max_tokens
    if max_tokens is not None and len(prompt) + max_tokens > info.max_model_len:
        raise InvalidRequest(
            f"max_tokens: {max_tokens} after a prompt of {len(prompt)} tokens is more than the "
            f"{info.max_model_len} tokens of model {info.name!r}; "
            f"at most {info.max_model_len - len(prompt)} are left",
            "max_tokens",
        )
    lowest, highest = min(prompt), max(prompt)
    if lowest < 0 or highest >= info.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequest(
            f"prompt: token id {wrong} is not in 0..{info.vocab_size - 1}, "
            f"the vocabulary of model {info.name!r}",
            "prompt",
        )


def most_output_tokens(request: EngineRequest, info: ModelInfo) -> int:
    """Output tokens after which the request ends with reason `length`."""
    room = info.max_model_len - len(request.prompt_token_ids)
    return room if request.sampling.max_tokens is None else request.sampling.max_tokens
