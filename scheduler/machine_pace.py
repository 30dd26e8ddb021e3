"""How fast a machine is just now, against what is usual for it."""

from math import exp, log

_RATE = 0.2
"""Of a step's error, what the pace is moved by."""
_ECHO = 0.4
"""Part of a step's error, against the pace, that the next step is expected to have too."""
_MOST_LATE, _MOST_EARLY = 0.08, 0.3
"""Of an error, what moves the pace: a step that is late may have been disturbed, one that is early
was not."""
_MOST_ECHOED = 0.5
_MOST_PACE = log(2.0)


class MachinePace:
    """Logarithms of factors on what steps usually take, for what prompts bring and for all else.

    Clocks change, and neighbours fill caches and use memory that the cores share: for some steps
    all of them take longer. What follows is half gone with each step, and the rest slowly.
    """

    def __init__(self) -> None:
        self._prompts, self._others = _Pace(), _Pace()

    @property
    def of_prompts(self) -> float:
        """In the next step."""
        return self._prompts.level + self._prompts.echo

    @property
    def of_others(self) -> float:
        """In the next step."""
        return self._others.level + self._others.echo

    def observe(self, prompts_s: float, others_s: float, seconds: float) -> None:
        """A step took so long, of which prompts should have taken, and others, that much."""
        expected_s = prompts_s * exp(self._prompts.level) + others_s * exp(self._others.level)
        surprise = log(seconds / expected_s)
        for pace, part_s in ((self._prompts, prompts_s), (self._others, others_s)):
            pace.follow(surprise, part_s / (prompts_s + others_s))


class _Pace:
    """Moved by a step in proportion to its part in it."""

    __slots__ = ("echo", "level")

    def __init__(self) -> None:
        self.level, self.echo = 0.0, 0.0

    def follow(self, surprise: float, share: float) -> None:
        self.echo = _ECHO * share * _bounded(surprise, -_MOST_ECHOED, _MOST_ECHOED)
        moved = self.level + _RATE * share * _bounded(surprise, -_MOST_EARLY, _MOST_LATE)
        self.level = _bounded(moved, -_MOST_PACE, _MOST_PACE)


def _bounded(number: float, least: float, most: float) -> float:
    return min(most, max(least, number))
