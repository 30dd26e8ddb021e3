"""Exit statuses, the same for every command; docs/cli.md has them as a table."""

from omniserve.errors import (
    CheckpointError,
    ConfigError,
    EngineUnavailable,
    InvalidRequest,
    OmniServeError,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
"""The command, a file it was given or a value in the request is not right."""
EXIT_UNAVAILABLE = 3
"""Nobody answers, or the daemon refused for now: the same command may succeed later."""
EXIT_ACCESS = 4
"""The token is missing, unknown, or not enough."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""Whoever read the output has gone; what a shell shows for SIGPIPE."""

_STATUSES: tuple[tuple[type[OmniServeError], int], ...] = (
    (ConfigError, EXIT_USAGE),
    (CheckpointError, EXIT_USAGE),
    (InvalidRequest, EXIT_USAGE),
    (EngineUnavailable, EXIT_UNAVAILABLE),
    (Overloaded, EXIT_UNAVAILABLE),
    (Unauthenticated, EXIT_ACCESS),
    (PermissionDenied, EXIT_ACCESS),
)


def exit_status_of(error: OmniServeError) -> int:
    """The status of a command that ends with this error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), EXIT_FAILURE)
