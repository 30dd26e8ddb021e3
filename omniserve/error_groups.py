"""Messages that differ in numbers alone, counted together."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<!HTTP )(?<![\d.,])\d[\d.,]*")
"""But for statuses of HTTP, which are what went wrong."""


def count_alike(messages: Iterable[str]) -> dict[str, int]:
    """How often each kind came, by its first message and in order of first appearance."""
    examples: dict[str, str] = {}
    counts: dict[str, int] = {}
    for message in messages:
        example = examples.setdefault(_NUMBER.sub("0", message), message)
        counts[example] = counts.get(example, 0) + 1
    return counts
