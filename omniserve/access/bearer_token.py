"""Bearer tokens: made here, known by their hashes alone, and kept out of what people read."""

import re
import secrets
from collections.abc import Sequence
from hashlib import sha256

from omniserve.errors import Unauthenticated

PREFIX = "omni_"
"""By which scanners of repositories and logs may find tokens that were left there."""
NUM_RANDOM_BYTES = 32
_LIKE_A_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{20,}}")
_SCHEME = "bearer"


def new_token() -> str:
    """256 random bits: nobody finds one by trying, so that its hash needs no salt."""
    return PREFIX + secrets.token_urlsafe(NUM_RANDOM_BYTES)


def hash_of(token: str) -> str:
    """SHA-256 in hexadecimal, as configurations hold it."""
    return sha256(token.encode()).hexdigest()


def bearer_token(authorization: Sequence[str]) -> str:
    """The token in all values of an `authorization` header or metadata key.

    Raises Unauthenticated, without a word of what was sent, where they are not one token.
    """
    if not authorization:
        raise Unauthenticated("a token is needed; send it as authorization: Bearer TOKEN")
    scheme, _, token = authorization[0].strip().partition(" ")
    token = token.strip()
    if len(authorization) > 1 or scheme.lower() != _SCHEME or not token or " " in token:
        raise Unauthenticated("authorization: must be given once, as Bearer TOKEN")
    return token


def without_tokens(text: str) -> str:
    """What may be shown of a text into which somebody may have put a token by mistake."""
    return _LIKE_A_TOKEN.sub(f"{PREFIX}…", text)
