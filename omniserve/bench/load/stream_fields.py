"""`key=value,key=value`: what a stream is on the command line, checked once."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from omniserve.bench.trace.formats.read_write import MAX_TOKENS
from omniserve.errors import ConfigError

BODY_PREFIX = "body."
_Value = TypeVar("_Value")

ServiceClass = Literal["latency_sensitive", "best_effort"]
_CLASSES: dict[str, ServiceClass] = {
    "ls": "latency_sensitive",
    "latency_sensitive": "latency_sensitive",
    "be": "best_effort",
    "best_effort": "best_effort",
}


class Fields:
    """The fields of one option, each taken by the name it has there."""

    def __init__(self, option: str, text: str) -> None:
        """Raises ConfigError for what is no list of fields."""
        self._option = option
        self._texts: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"{option} {text!r}: {part!r} is not key=value")
            if key.strip() in self._texts:
                raise ConfigError(f"{option} {text!r}: {key.strip()} is given twice")
            self._texts[key.strip()] = value.strip()

    def has(self, key: str) -> bool:
        return key in self._texts

    def text(self, key: str, default: str = "") -> str:
        return self._texts.pop(key, default)

    def number(self, key: str, *, is_zero_allowed: bool = False) -> float | None:
        """A finite number above 0, None where it is not given."""
        allowed = f"a number {'from 0 on' if is_zero_allowed else 'above 0'}"
        low = 0.0 if is_zero_allowed else math.ulp(0.0)
        return self._parsed(key, float, lambda value: low <= value < math.inf, allowed)

    def whole_number(self, key: str, most: int) -> int | None:
        allowed = f"a whole number from 1 to {most}"
        return self._parsed(key, int, lambda value: 1 <= value <= most, allowed)

    def token_range(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        """N, or LOW-HIGH, both included."""

        def parse(text: str) -> tuple[int, int]:
            low, dash, high = text.partition("-")
            return int(low), int(high if dash else low)

        allowed = f"N or LOW-HIGH, of whole numbers from 1 to {MAX_TOKENS}"
        parsed = self._parsed(
            key, parse, lambda value: 1 <= value[0] <= value[1] <= MAX_TOKENS, allowed
        )
        return default if parsed is None else parsed

    def service_class(self, default: ServiceClass) -> ServiceClass:
        parsed = self._parsed("class", _CLASSES.get, lambda kind: kind is not None, "ls, be")
        return parsed or default

    def extra_body(self) -> Mapping[str, Any]:
        """body.KEY=VALUE, for the body of OpenAI requests: JSON where it is some, else text."""
        keys = [key for key in self._texts if key.startswith(BODY_PREFIX)]
        return {key.removeprefix(BODY_PREFIX): _json(self._texts.pop(key)) for key in keys}

    def done(self, allowed: str) -> None:
        """Raises ConfigError where a field is left that nobody took."""
        if self._texts:
            unknown = next(iter(self._texts))
            raise ConfigError(f"{self._option}: {unknown}: unknown field; allowed: {allowed}")

    def refuse(self, key: str, value: str, allowed: str) -> ConfigError:
        return ConfigError(f"{self._option}: {key}: {value!r} is not allowed; allowed: {allowed}")

    def _parsed(
        self,
        key: str,
        parse: Callable[[str], _Value],
        is_right: Callable[[_Value], bool],
        allowed: str,
    ) -> _Value | None:
        text = self._texts.pop(key, None)
        if text is None:
            return None
        try:
            value = parse(text)
        except ValueError:
            raise self.refuse(key, text, allowed) from None
        if not is_right(value):
            raise self.refuse(key, text, allowed)
        return value


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
