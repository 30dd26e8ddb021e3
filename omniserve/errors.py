"""The exception tree, and the one table that maps it to gRPC and HTTP statuses.

The gRPC column holds the names of `grpc.StatusCode` members, so that this module needs no grpc.
"""


class OmniServeError(Exception):
    """An expected failure whose message may be shown to a client."""

    request_id = ""
    """Of the request that it ended; empty where there was none, or none that can be shown."""


class InvalidRequest(OmniServeError):
    """A value of a request is not allowed; `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(OmniServeError):
    """No model of that name is served."""


class EngineUnavailable(OmniServeError):
    """The engine is starting, restarting or draining; the same request may be sent again."""


class ModelUnavailable(EngineUnavailable):
    """The model is being loaded, or unloaded; elsewhere or later it may be served."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(OmniServeError):
    """Taken now, the request would not meet its objective; later it may."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Overloaded):
    """The request is more than its tenant may have now; later it may. `quota` is the key of the one
    that it would exceed."""

    def __init__(self, message: str, retry_after_s: float, quota: str = "") -> None:
        super().__init__(message, retry_after_s)
        self.quota = quota


class Unauthenticated(OmniServeError):
    """The caller did not show a token that is known."""


class PermissionDenied(OmniServeError):
    """The caller is known, and may not have what it asks for."""


class DeadlineExceeded(OmniServeError):
    """The request's deadline passed before its last token."""


class UnknownRequest(OmniServeError):
    """Nothing is known, or not any more, of a request of that id."""


class ReloadRefused(OmniServeError):
    """A configuration was not taken over; the one before it stays in force."""


class ModelExists(OmniServeError):
    """A model of that name, or alias, is there already."""


class ModelBusy(OmniServeError):
    """What is being done with the model, or its pin, does not go with what was asked."""


class LoadCancelled(OmniServeError):
    """The loading of a model was given up, because somebody unloaded it or the daemon stops."""


class RequestCancelled(OmniServeError):
    """The client went away or its deadline passed."""


class ClientTooSlow(OmniServeError):
    """The client does not read what is generated for it."""


class EngineError(OmniServeError):
    """The engine failed on this request."""


class ConfigError(OmniServeError):
    """The configuration cannot be used; reaches operators and no other clients."""


class CheckpointError(OmniServeError):
    """A checkpoint is missing, broken or not supported; reaches operators as ConfigError does."""

    def __init__(self, message: str) -> None:
        # Names in files may hold halves of characters, which no message can carry.
        super().__init__(message.encode("utf-8", "replace").decode())


STATUS_TABLE: dict[type[OmniServeError], tuple[str, int]] = {
    InvalidRequest: ("INVALID_ARGUMENT", 400),
    UnknownModel: ("NOT_FOUND", 404),
    EngineUnavailable: ("UNAVAILABLE", 503),
    Overloaded: ("RESOURCE_EXHAUSTED", 429),
    Unauthenticated: ("UNAUTHENTICATED", 401),
    PermissionDenied: ("PERMISSION_DENIED", 403),
    DeadlineExceeded: ("DEADLINE_EXCEEDED", 504),
    UnknownRequest: ("NOT_FOUND", 404),
    ReloadRefused: ("FAILED_PRECONDITION", 412),
    ModelExists: ("ALREADY_EXISTS", 409),
    ModelBusy: ("FAILED_PRECONDITION", 409),
    LoadCancelled: ("ABORTED", 409),
    ConfigError: ("INVALID_ARGUMENT", 400),
    CheckpointError: ("INVALID_ARGUMENT", 400),
    RequestCancelled: ("CANCELLED", 499),
    ClientTooSlow: ("RESOURCE_EXHAUSTED", 429),
    EngineError: ("INTERNAL", 500),
}


def status_of(error: BaseException) -> tuple[str, int]:
    """The gRPC status name and HTTP status of an exception; anything unexpected is internal."""
    for kind in type(error).__mro__:
        if kind in STATUS_TABLE:
            return STATUS_TABLE[kind]
    return "INTERNAL", 500


_RETRY_UNAVAILABLE_S = 1.0


def retry_after_s_of(error: BaseException) -> float | None:
    """When the same request may be sent again; None where that would not help."""
    if isinstance(error, Overloaded | ModelUnavailable):
        return error.retry_after_s
    return _RETRY_UNAVAILABLE_S if isinstance(error, EngineUnavailable) else None
