"""Which events of a stream tell how many tokens there are by then."""

from enum import Enum


class UsageEvents(Enum):
    """What a client asked for in `stream_options`."""

    NONE = "none"
    LAST = "last"
    """One event after all others."""
    ALL = "all"
    """Every event, and one for every output of the engine, though its text may be held back."""
