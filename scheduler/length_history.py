"""How long outputs have been lately, and how long a request may so be expected to go on."""

from bisect import bisect_right, insort
from collections import deque
from random import Random

_NUM_KEPT = 200


class LengthHistory:
    """The last 200 output lengths of a class of requests."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def note(self, num_output_tokens: int) -> None:
        """A request ended with so many."""
        if len(self._recent) == _NUM_KEPT:
            self._sorted.remove(self._recent.popleft())
        self._recent.append(num_output_tokens)
        insort(self._sorted, num_output_tokens)

    def draw(self, num_generated: int, most: int, random: Random) -> int:
        """A length for a request that has generated so many tokens and may have `most`: one of
        those that were longer; the most there may be where none was."""
        first = bisect_right(self._sorted, num_generated)
        if first == len(self._sorted):
            return most
        return min(most, self._sorted[random.randrange(first, len(self._sorted))])
