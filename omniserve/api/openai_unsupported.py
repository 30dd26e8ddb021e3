"""OpenAI features that are refused by name rather than ignored."""

from typing import Any, Protocol

from omniserve.errors import InvalidRequest
from omniserve.shown_number import shown_number

_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "reasoning_effort": (),
    "verbosity": (),
}
"""Fields of a chat that ask for something unsupported, with the values that do not."""


class ChatFeatures(Protocol):
    """The fields of `_WITHOUT_EFFECT`, of which most requests set none."""

    tools: Any
    tool_choice: Any
    functions: Any
    function_call: Any
    response_format: Any
    modalities: Any
    audio: Any
    prediction: Any
    web_search_options: Any
    moderation: Any
    reasoning_effort: Any
    verbosity: Any


def check_chat_features(body: ChatFeatures) -> None:
    """Raises InvalidRequest where a chat asks for an unsupported feature."""
    for name, without_effect in _WITHOUT_EFFECT.items():
        value = getattr(body, name)
        if value is not None and value not in without_effect:
            allowed = " or ".join(["null", *map(str, without_effect)])
            raise InvalidRequest(f"{name}: is not supported; allowed: {allowed}", name)


def check_completion_features(
    echo: bool | None, best_of: int | None, suffix: str | None, n: int
) -> None:
    """Raises InvalidRequest where a completion asks for an unsupported feature."""
    if echo:
        raise InvalidRequest("echo: is not supported; allowed: false", "echo")
    if best_of not in (None, n):
        raise InvalidRequest(
            f"best_of: is not supported; allowed: null or n ({shown_number(n)})", "best_of"
        )
    if suffix:
        raise InvalidRequest("suffix: is not supported; allowed: null", "suffix")
