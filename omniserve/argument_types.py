"""Types of command-line arguments: numbers in a range, refused with what is allowed."""

import argparse
from collections.abc import Callable


def number(unit: str, low: float, high: float) -> Callable[[str], float]:
    """For `type=`: a number of `unit` from `low` to `high`."""

    def parse(text: str) -> float:
        allowed = f"{text!r} is not allowed; allowed: {low:g} to {high:g} {unit}".rstrip()
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(allowed) from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(allowed)
        return value

    return parse


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """For `type=`: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            allowed = f"{text!r} is not allowed; allowed: a whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(allowed)
        return int(text)

    return parse


def utf8_text(text: str) -> str:
    """For `type=`: text that can be sent; arguments may hold bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{ascii(text[:128])} is not UTF-8 text") from None
    return text
