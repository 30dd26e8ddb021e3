"""How long requests may have to end before their model is unloaded."""

import math

from omniserve.errors import InvalidRequest

MAX_DRAIN_S = 86_400.0


def check_drain_s(drain_s: float) -> None:
    """Raises InvalidRequest."""
    if not (math.isfinite(drain_s) and 0 <= drain_s <= MAX_DRAIN_S):
        message = f"drain_s: {drain_s:g} is not allowed; allowed: 0 to {MAX_DRAIN_S:g}"
        raise InvalidRequest(message, "drain_s")
