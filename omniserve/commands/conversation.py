"""A chat, as its client keeps it."""

import json
from dataclasses import dataclass
from pathlib import Path

from omniserve.atomic_file import write_text
from omniserve.errors import ConfigError
from omniserve.regular_file import read_regular_file

_MAX_BYTES = 64 << 20
_ROLES = ("user", "assistant")
_NO_CHAT = "holds no chat that was saved"


@dataclass(frozen=True, slots=True)
class Said:
    """One message; `role` is system, user or assistant."""

    role: str
    content: str


class Conversation:
    """Questions, each with its answer."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        """Told to the model before all else, unless empty."""
        self._said: list[Said] = []

    def messages(self, question: str) -> list[Said]:
        """For the model: all that was said, and then this."""
        first = [Said("system", self.system)] if self.system else []
        return [*first, *self._said, Said("user", question)]

    def add(self, question: str, answer: str) -> None:
        self._said += [Said("user", question), Said("assistant", answer)]

    def take_back(self) -> str | None:
        """Forgets the last question and its answer, and returns the question."""
        if not self._said:
            return None
        question, _ = self._said[-2:]
        del self._said[-2:]
        return question.content

    def clear(self) -> None:
        """Forgets what was said; the system message stays."""
        self._said.clear()

    def save(self, path: Path) -> None:
        """As JSON; raises ConfigError."""
        said = [{"role": each.role, "content": each.content} for each in self._said]
        text = json.dumps({"system": self.system, "messages": said}, indent=2)
        try:
            write_text(path, f"{text}\n")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{ascii(str(path))}: cannot be written: {error}") from None

    def load(self, path: Path) -> int:
        """Replaces everything by what was saved, and returns the number of questions.

        Raises ConfigError; then everything is as it was.
        """
        try:
            found = json.loads(read_regular_file(path, _MAX_BYTES))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise ConfigError(f"{ascii(str(path))}: {_NO_CHAT}") from None
        try:
            self.system, self._said = _checked(found)
        except (LookupError, TypeError, ValueError):
            raise ConfigError(f"{path}: {_NO_CHAT}") from None
        return len(self._said) // 2


def _checked(found: object) -> tuple[str, list[Said]]:
    """Raises LookupError, TypeError or ValueError."""
    if not isinstance(found, dict):
        raise TypeError
    said = [Said(message["role"], message["content"]) for message in found["messages"]]
    if [each.role for each in said] != list(_ROLES) * (len(said) // 2):
        raise ValueError
    texts = [found["system"], *(each.content for each in said)]
    # JSON can hold halves of characters, which no text is made of.
    "".join(texts).encode()
    return texts[0], said
