"""When a certificate ends. Nothing of Python's own tells it of a certificate of one's own."""

from datetime import UTC, datetime

from omniserve import der

_UTC_TIME = 0x17
_FIRST_YEAR = 1950
"""X.509 writes years until 2049 with two digits."""


def not_after(certificate: bytes) -> datetime:
    """The end of a DER certificate's validity; raises ValueError where it cannot be read."""
    try:
        _, _, start = der.element(certificate, der.field_start(certificate, der.VALIDITY))
        tag, start, end = der.element(certificate, start)
    except IndexError:
        raise ValueError("the certificate ends early") from None
    return _moment(certificate[start:end].decode("ascii"), has_short_year=tag == _UTC_TIME)


def _moment(text: str, *, has_short_year: bool) -> datetime:
    if has_short_year:
        century = _FIRST_YEAR // 100
        text = f"{century if int(text[:2]) >= _FIRST_YEAR % 100 else century + 1}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
