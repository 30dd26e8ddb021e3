"""How requests and calls end, in few enough words for a metric's label."""

import asyncio

from omniserve.errors import (
    ClientTooSlow,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    RequestCancelled,
    Unauthenticated,
    UnknownModel,
)
from omniserve.metrics import Outcome

_OUTCOMES: tuple[tuple[tuple[type[BaseException], ...], Outcome], ...] = (
    ((asyncio.CancelledError, GeneratorExit, RequestCancelled, ClientTooSlow), "cancelled"),
    ((DeadlineExceeded,), "late"),
    ((QuotaExceeded,), "over_quota"),
    ((Overloaded,), "refused"),
    ((Unauthenticated, PermissionDenied), "denied"),
    ((InvalidRequest, UnknownModel), "invalid"),
    ((EngineUnavailable,), "unavailable"),
)


def outcome_of(error: BaseException | None) -> Outcome:
    """The metrics label of how a request ended."""
    if error is None:
        return "ok"
    return next((outcome for kinds, outcome in _OUTCOMES if isinstance(error, kinds)), "error")
