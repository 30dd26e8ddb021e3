"""Numbers of clients in messages for people."""

MAX_CHARS = 24
"""Every 64-bit integer and every float is shorter."""
_SHOWN_CHARS = 16


def shown_number(value: float) -> str:
    """As messages repeat it: integers in JSON have no bounds, and their beginning will do."""
    text = str(value)
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}… ({len(text)} characters)"
