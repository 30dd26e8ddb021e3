"""Why calls are refused, in few enough words for a metric's label."""

from typing import Literal

from omniserve.errors import (
    CheckpointError,
    ClientTooSlow,
    ConfigError,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    LoadCancelled,
    ModelBusy,
    ModelExists,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    ReloadRefused,
    Unauthenticated,
    UnknownModel,
    UnknownRequest,
)

RefusalReason = Literal[
    "overloaded",
    "quota",
    "unauthenticated",
    "permission_denied",
    "unknown_model",
    "invalid",
    "unavailable",
    "deadline",
    "client_too_slow",
]

_REASONS: dict[type[BaseException], RefusalReason] = {
    Overloaded: "overloaded",
    QuotaExceeded: "quota",
    Unauthenticated: "unauthenticated",
    PermissionDenied: "permission_denied",
    UnknownModel: "unknown_model",
    InvalidRequest: "invalid",
    UnknownRequest: "invalid",
    ReloadRefused: "invalid",
    ModelExists: "invalid",
    ModelBusy: "invalid",
    LoadCancelled: "invalid",
    ConfigError: "invalid",
    CheckpointError: "invalid",
    EngineUnavailable: "unavailable",
    DeadlineExceeded: "deadline",
    ClientTooSlow: "client_too_slow",
}


def refusal_reason(error: BaseException | None) -> RefusalReason | None:
    """None where there was no error, the client went away, or the fault is the server's."""
    return next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), None)
