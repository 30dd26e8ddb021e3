"""How fast waiting lines have moved of late, and so when there is a place in them again."""

from collections import deque

LEAST_WAIT_S, MOST_WAIT_S = 0.1, 10.0
"""Of what a refused request is told: sooner it would only be refused again, and what is predicted
for later is little worth."""
_WINDOW_S = 5.0
_SAMPLE_S = 0.1


def retry_after_s(predicted_s: float) -> float:
    """What a refused request is told, of a prediction that may be infinite."""
    return min(MOST_WAIT_S, max(LEAST_WAIT_S, predicted_s))


class QueueMovement:
    """One waiting line's, from how many had left it whenever somebody looked."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, num_left: int) -> None:
        """`num_left` have left the line since it began."""
        samples = self._samples
        while samples and now_s - samples[0][0] > _WINDOW_S:
            samples.popleft()
        if not samples or now_s - samples[-1][0] >= _SAMPLE_S:
            samples.append((now_s, num_left))

    def next_place_s(self, now_s: float, num_left: int) -> float:
        """Until one more leaves, if it goes on as in the last seconds; where none left, as long
        again as nothing has moved. At least one `note` must have been taken."""
        began_s, num_before = self._samples[0]
        return (now_s - began_s) / max(1, num_left - num_before)
