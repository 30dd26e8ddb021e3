"""What counts as a defect, whatever the case is."""

import io
import json
import logging
from collections.abc import Iterable, Sequence

from omniserve.logs import LogSettings, configure_logging

PLANTED_TOKEN = "omni_FUZZfuzzFUZZfuzzFUZZfuzzFUZZfuzzFUZZfuzz012"
"""Of the shape of a tenant's token: it may never come back in a message or a log."""
PLANTED_PROMPT = "the heron stood in the millpond at dawn"
"""Likewise."""
SECRETS = (PLANTED_TOKEN.removeprefix("omni_"), PLANTED_PROMPT)
MAX_MESSAGE_CHARS = 4096
"""What gRPC clients take as a trailer is 8 KiB, and a message is in it twice."""


class Defect(AssertionError):
    """The system under test did what it never may."""


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise Defect(problem)


def check_message(text: str, secrets: Sequence[str] = SECRETS) -> None:
    """A message for people: short, printable but for its line breaks, without secrets."""
    check(bool(text), "an error without a message")
    check(len(text) <= MAX_MESSAGE_CHARS, f"a message of {len(text)} characters")
    check("".join(text.split("\n")).isprintable(), f"characters that do not print: {text!r}")
    check_no_secret(text, secrets)


def check_no_secret(text: str, secrets: Sequence[str] = SECRETS) -> None:
    for secret in secrets:
        check(secret not in text, f"a secret was shown: {text!r}")


def _told(line: str) -> str:
    """An event with its traceback as people read it."""
    event = json.loads(line)
    return f"{event}\n{event.get('traceback', '')}"


class LogWatch:
    """Everything that this process logs, from its making on."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        configure_logging(LogSettings(format="json", level="debug"), self._stream)
        logging.raiseExceptions = True

    def check(self, allowed: Iterable[str] = ()) -> None:
        """No secret, no traceback and no error since the last time, but for `allowed` events."""
        text = self._stream.getvalue()
        if not text:
            return
        self._stream.seek(0)
        self._stream.truncate()
        check_no_secret(text)
        for line in text.splitlines():
            is_bad = '"level": "error"' in line or '"traceback"' in line
            is_allowed = any(f'"event": "{event}"' in line for event in allowed)
            check(is_allowed or not is_bad, f"an error was logged: {_told(line)}")
