"""Random numbers that depend on nothing but a request's seed and the token's index."""

import struct
from hashlib import blake2b

_PAIR = struct.Struct("<qq")
_TO_UNIT = 2.0**-53


def uniform(seed: int, index: int) -> float:
    """A uniform number in [0, 1) for output token `index` under a seed, both int64."""
    digest = blake2b(_PAIR.pack(seed, index), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * _TO_UNIT
