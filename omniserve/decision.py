"""What is told of a request to whoever asks what became of it and why."""

from dataclasses import dataclass

WHOLE_REQUEST = -1


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a request's timeline."""

    sequence: int
    """Which of the request's sequences, from 0; `WHOLE_REQUEST` where it is about all of them."""
    at_s: float
    """On the monotonic clock that all processes share."""
    last_s: float
    """When it happened last, where equal ones came in a row; of waiting, when it ended."""
    times: int
    event: str
    reason: str
    """Empty where the event needs none."""
    detail: str
