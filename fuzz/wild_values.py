"""Values at the edges of what programs expect, and names that the systems under test know."""

from fuzz.byte_source import ByteSource

INTEGERS = (
    *(0, 1, -1, 2, 3, 16, 17, 20, 21, 127, 128, 255, 256, 257, 4095, 4096, 65_535, 65_536),
    *(2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64),
    *(86_400_000, 86_400_001, 10**20, 10**400, -(10**400)),
)
FLOATS = (
    *(0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 2.0000001, -2.0, 100.0, 99.999, 5e-324, 1e-9, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "x", "demo", "interactive", "batch", "auto", "default", "priority", "flex"),
    *("system", "user", "assistant", "developer", "tool", "text", "echo", "chat", "req-1"),
    *("\0", "\n", "\r\n", "\t", "\x7f", "\x1b[31m", "\u00e9", "\u2028", "\u202e", "\ufeff"),
    *("\ufffd", "\U0001f600", "e\u0301" * 20, "<|im_end|>", "{{7*7}}", "{% raise %}", "%s%n"),
    *("../../etc/passwd", "~", "~nobody-here/x", "/", "/dev/zero", "unix:/x", "a" * 129),
    *("b" * 5000, "64MiB", "1e3", "0x10", "1_000", "127.0.0.1:0", "[::1]:1", "localhost:99999"),
    *("https://u:p@h/", "credential:x", "0" * 64, "null", "NaN"),
)


def wild_integer(source: ByteSource) -> int:
    """At an edge, or any of 1, 2, 4 or 8 bytes."""
    if source.flag():
        return source.choice(INTEGERS)
    return source.integer(source.choice((1, 2, 4, 8)))


def wild_float(source: ByteSource) -> float:
    if source.flag():
        return source.choice(FLOATS)
    return source.integer(2) / 256


def wild_text(source: ByteSource) -> str:
    """A known one, some characters, or a short one many times."""
    kind = source.below(8)
    if kind < 4:
        return source.choice(TEXTS)
    if kind < 7:
        return source.text(64)
    return source.text(8) * source.below(2000)


def wild_json(source: ByteSource, depth: int = 0) -> object:
    """Anything that JSON can say."""
    kind = source.below(8 if depth < 4 else 6)
    if kind == 0:
        return None
    if kind == 1:
        return source.flag()
    if kind == 2:
        return wild_integer(source)
    if kind == 3:
        return wild_float(source)
    if kind < 6:
        return wild_text(source)
    num_entries = source.choice((0, 1, 2, 3, 20))
    if kind == 6:
        return [wild_json(source, depth + 1) for _ in range(num_entries)]
    return {wild_text(source): wild_json(source, depth + 1) for _ in range(num_entries)}
