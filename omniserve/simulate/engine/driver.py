"""What passes between a simulated engine and whoever drives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omniserve.requests import TierRules
from scheduler import Request

OnTokens = Callable[[str, Sequence[str], Sequence[Request]], None]
"""Model, requests with one token more, and those that ended with it."""
OnRefused = Callable[[str, Request, Exception], None]
"""Model, a request that could never run, or not in time, and why."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that the engine has not looked at yet."""

    model: str
    request: Request
    rules: TierRules = TierRules()
