"""Places in a DER certificate: so much as Python's own ssl module does not tell."""

VALIDITY, KEY = 3, 5
"""Fields of a certificate's body, counted without its version; before them are serial number,
algorithm and issuer, between them the subject."""
_EXPLICIT_VERSION = 0xA0


def element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the element at a place, and where its content starts and ends.

    Raises IndexError where the data ends before that place or within its first two bytes. That the
    content is there is for the caller to see: it may end after the data.
    """
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        num_bytes = length & 0x7F
        length = int.from_bytes(data[start : start + num_bytes], "big")
        start += num_bytes
    return tag, start, start + length


def field_start(certificate: bytes, number: int) -> int:
    """Where the content of a field of the body starts; raises as `element` does."""
    _, start, _ = element(certificate, 0)
    _, start, _ = element(certificate, start)
    tag, _, end = element(certificate, start)
    start = end if tag == _EXPLICIT_VERSION else start
    for _ in range(number):
        _, _, start = element(certificate, start)
    _, start, _ = element(certificate, start)
    return start
