"""Checks what a client asks of sampling, once, at the edge."""

from dataclasses import replace

from omniserve.errors import InvalidRequest
from omniserve.requests import SamplingParams
from omniserve.shown_number import shown_number

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 1024
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


def check_sampling(params: SamplingParams, n: int, vocab_size: int) -> SamplingParams:
    """The parameters, with a `top_k` that keeps every token written as 0; raises InvalidRequest."""
    _check_distribution(params)
    _check_penalties(params)
    _check_logit_bias(params.logit_bias, vocab_size)
    _check_stops(params, vocab_size)
    _check_integers(params, n)
    # Also what is not below the vocabulary: JSON integers have no bounds, messages and tensors do.
    return params if 0 <= params.top_k < vocab_size else replace(params, top_k=0)


def _check_distribution(params: SamplingParams) -> None:
    _require(0.0 <= params.temperature <= 2.0, "temperature", params.temperature, "0 to 2")
    _require(0.0 < params.top_p <= 1.0, "top_p", params.top_p, "above 0, up to 1")
    _require(params.top_k >= -1, "top_k", params.top_k, "1 or more, or 0 or -1 for no limit")
    _require(0.0 <= params.min_p <= 1.0, "min_p", params.min_p, "0 to 1")


def _check_penalties(params: SamplingParams) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, name)
        _require(-2.0 <= value <= 2.0, name, value, "-2 to 2")
    penalty = params.repetition_penalty
    _require(0.0 < penalty <= 10.0, "repetition_penalty", penalty, "above 0, up to 10")


def _check_logit_bias(logit_bias: dict[int, float], vocab_size: int) -> None:
    if len(logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
        count = f"{len(logit_bias)} entries"
        raise _not_allowed("logit_bias", count, f"at most {MAX_LOGIT_BIAS_ENTRIES} entries")
    for token_id, bias in logit_bias.items():
        _check_token_id(token_id, "logit_bias", vocab_size)
        _require(-100.0 <= bias <= 100.0, f"logit_bias[{token_id}]", bias, "-100 to 100")


def _check_stops(params: SamplingParams, vocab_size: int) -> None:
    if len(params.stop) > MAX_STOP_STRINGS:
        raise _not_allowed("stop", f"{len(params.stop)} strings", f"at most {MAX_STOP_STRINGS}")
    for stop in params.stop:
        # The string itself is the client's content and stays out of the message.
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            allowed = f"strings of 1 to {MAX_STOP_CHARS} characters"
            raise _not_allowed("stop", f"a string of {len(stop)} characters", allowed)
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        count = f"{len(params.stop_token_ids)} ids"
        raise _not_allowed("stop_token_ids", count, f"at most {MAX_STOP_TOKEN_IDS}")
    for token_id in params.stop_token_ids:
        _check_token_id(token_id, "stop_token_ids", vocab_size)


def _check_integers(params: SamplingParams, n: int) -> None:
    _require(1 <= n <= MAX_CHOICES, "n", n, f"1 to {MAX_CHOICES}")
    if params.max_tokens is not None:
        _require(params.max_tokens >= 1, "max_tokens", params.max_tokens, "1 or more")
    if params.logprobs is not None:
        is_allowed = 0 <= params.logprobs <= MAX_LOGPROBS
        _require(is_allowed, "logprobs", params.logprobs, f"0 to {MAX_LOGPROBS}")
    if params.seed is not None:
        # Choice i is seeded with seed + i, which has to fit as well.
        fits = INT64_MIN <= params.seed and params.seed + n - 1 <= INT64_MAX
        _require(fits, "seed", params.seed, f"a signed 64-bit integer, up to {INT64_MAX} - (n - 1)")


def _check_token_id(token_id: int, param: str, vocab_size: int) -> None:
    _require(0 <= token_id < vocab_size, param, token_id, f"token ids from 0 to {vocab_size - 1}")


def _require(holds: bool, param: str, value: float, allowed: str) -> None:
    """NaN fails every comparison and so every check; infinities fail the bounded ones."""
    if not holds:
        raise _not_allowed(param, shown_number(value), allowed)


def _not_allowed(param: str, value: str, allowed: str) -> InvalidRequest:
    message = f"{param}: {value} is not allowed; allowed: {allowed}"
    return InvalidRequest(message, param.partition("[")[0])
