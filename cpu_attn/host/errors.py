"""What callers of host attention may have to deal with; wrong arguments are ValueError."""


class HostAttentionError(Exception):
    """Base of the errors of the host attention process."""


class HostAttentionDown(HostAttentionError):
    """The process is not there and will not come back by itself; the message says why."""
