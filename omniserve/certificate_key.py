"""Of which kind a certificate's key is. Nothing of Python's own tells it."""

from omniserve import der

_SPOKEN = (
    bytes.fromhex("2a864886f70d010101"),  # RSA
    bytes.fromhex("2a8648ce3d030107"),  # P-256
    bytes.fromhex("2b81040022"),  # P-384
)
"""By every client of ours: gRPC's for Python knows no others."""
_ELLIPTIC = bytes.fromhex("2a8648ce3d0201")
_NAMES = {
    bytes.fromhex("2b81040023"): "P-521",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
}


def unspoken_key(certificate: bytes) -> str:
    """The kind of a DER certificate's key where gRPC clients in Python cannot speak it, else "".

    Raises ValueError where it cannot be read.
    """
    try:
        kind = _kind(certificate)
    except IndexError:
        raise ValueError("the certificate ends early") from None
    return "" if kind in _SPOKEN else _NAMES.get(kind, "of a rare kind")


def _kind(certificate: bytes) -> bytes:
    """Object identifier of the algorithm; with elliptic curves that of the curve."""
    _, start, _ = der.element(certificate, der.field_start(certificate, der.KEY))
    _, start, end = der.element(certificate, start)
    if certificate[start:end] == _ELLIPTIC:
        _, start, end = der.element(certificate, end)
    return certificate[start:end]
