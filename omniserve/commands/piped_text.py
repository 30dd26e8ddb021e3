"""Prompts that come from a pipe or a file."""

import sys

from omniserve.errors import ConfigError

MAX_BYTES = 64 << 20
"""More than any server takes in one message."""


def read_stdin() -> str:
    """All of it, without the line end that shells and editors put at the end.

    Raises ConfigError.
    """
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"standard input: is longer than {MAX_BYTES >> 20} MiB")
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input: not UTF-8 text at byte {error.start}") from None
