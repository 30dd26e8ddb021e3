"""Regular expressions out of files of strangers, matched within a bounded amount of work.

Python's own matcher tries one way after the other, and a short expression can be written for which
there are more ways than anybody can wait for. Here all places at which a part of the expression can
end are found together, and what that takes is counted.
"""

import re
from collections.abc import Callable

from omniserve.errors import OmniServeError

MAX_CHARS = 4000
MAX_STEPS = 2_000_000
_MAX_DEPTH = 20
_MAX_REPEATS = 255

_Find = Callable[[str, set[int]], set[int]]
"""From places in a text at which a part may begin to those at which it may end."""
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": lambda char: char.isdecimal(),
    "w": lambda char: char.isalnum() or char == "_",
    "s": lambda char: char.isspace(),
}
_COUNTS = re.compile(r"\{(\d{0,9})(,?)(\d{0,9})\}")


class PatternError(OmniServeError):
    """The expression is broken, not of the supported kind, or too much work."""


class PatternWork:
    """What matching may take, of all expressions that it is given to."""

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._num_left = max_steps

    def spend(self, num_steps: int) -> None:
        self._num_left -= num_steps
        if self._num_left < 0:
            raise PatternError("takes too long to match")


class PlainPattern:
    """An expression of characters, classes, groups, alternatives, repeats, ^, $ and \\b.

    What looks around or back, and flags, are refused.
    """

    def __init__(self, expression: str, work: PatternWork) -> None:
        """Raises PatternError."""
        if len(expression) > MAX_CHARS:
            raise PatternError(f"is longer than {MAX_CHARS} characters")
        self._find = _Parser(expression, work).parse()

    def matches(self, text: str) -> bool:
        """Whether all of `text` matches; raises PatternError where that takes too long."""
        return len(text) in self._find(text, {0})


class _Parser:
    """Recursive descent; each part becomes a function."""

    def __init__(self, expression: str, work: PatternWork) -> None:
        self._text = expression
        self._place = 0
        self._depth = 0
        self._work = work

    def parse(self) -> _Find:
        find = self._alternatives()
        if self._place < len(self._text):
            raise PatternError(f"has a {self._text[self._place]!r} that closes nothing")
        return find

    def _alternatives(self) -> _Find:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternError("is nested too deep")
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        self._depth -= 1
        if len(branches) == 1:
            return branches[0]
        return lambda text, starts: {end for find in branches for end in find(text, starts)}

    def _sequence(self) -> _Find:
        parts: list[_Find] = []
        while self._place < len(self._text) and self._text[self._place] not in "|)":
            parts.append(self._repeated(self._part()))

        def find(text: str, starts: set[int]) -> set[int]:
            for part in parts:
                starts = part(text, starts)
            return starts

        return find

    def _repeated(self, part: _Find) -> _Find:
        least, most = 1, 1
        counts = _COUNTS.match(self._text, self._place)
        if self._take("*"):
            least, most = 0, _MAX_REPEATS
        elif self._take("+"):
            most = _MAX_REPEATS
        elif self._take("?"):
            least = 0
        elif counts is not None and (counts[1] or counts[3]):
            self._place = counts.end()
            least = int(counts[1] or 0)
            most = int(counts[3] or _MAX_REPEATS) if counts[2] else least
            if not least <= most <= _MAX_REPEATS:
                raise PatternError(f"repeats {counts[0]}; at most {_MAX_REPEATS} are allowed")
        else:
            return part
        self._take("?")  # Which way is tried first makes no difference to whether there is one.
        if self._place < len(self._text) and self._text[self._place] in "*+?":
            raise PatternError("repeats a repeat")
        return lambda text, starts: _repeat(part, text, starts, least, most, self._work)

    def _part(self) -> _Find:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._one(self._class())
        if char == ".":
            return self._one(lambda char: char != "\n")
        if char == "^":
            return lambda text, starts: starts & {0}
        if char == "$":
            return lambda text, starts: starts & {len(text)}
        if char in "*+?":
            raise PatternError("repeats nothing")
        if char == "\\":
            if self._take("b"):
                return _at_word_boundaries
            return self._one(self._escaped())
        return self._one(lambda other: other == char)

    def _group(self) -> _Find:
        if self._take("?") and not self._take(":"):
            named = re.compile(r"P<\w+>").match(self._text, self._place)
            if named is None:
                raise PatternError("has a group of a kind that is not supported")
            self._place = named.end()
        find = self._alternatives()
        if not self._take(")"):
            raise PatternError("has a group that is not closed")
        return find

    def _class(self) -> Callable[[str], bool]:
        is_negated = self._take("^")
        wanted: list[Callable[[str], bool]] = []
        while not wanted or not self._take("]"):
            low = self._next()
            if low == "\\":
                if self._text[self._place : self._place + 1] in _CLASSES:
                    wanted.append(_CLASSES[self._next()])
                    continue
                low = self._literal()
            high = low
            if self._text[self._place : self._place + 1] == "-":
                if self._text[self._place + 1 : self._place + 2] != "]":
                    self._next()
                    high = self._next()
                    high = self._literal() if high == "\\" else high
            if low > high:
                raise PatternError(f"has the range {low}-{high}, which is empty")
            wanted.append(lambda char, low=low, high=high: low <= char <= high)  # type: ignore[misc]
        return lambda char: any(each(char) for each in wanted) != is_negated

    def _escaped(self) -> Callable[[str], bool]:
        char = self._text[self._place : self._place + 1]
        if char.lower() in _CLASSES and char:
            is_of = _CLASSES[self._next().lower()]
            return is_of if char.islower() else lambda other: not is_of(other)
        literal = self._literal()
        return lambda other: other == literal

    def _literal(self) -> str:
        char = self._next()
        if char.isalnum():
            raise PatternError(f"has \\{char}, which is not supported")
        return char

    def _one(self, is_of: Callable[[str], bool]) -> _Find:
        def find(text: str, starts: set[int]) -> set[int]:
            self._work.spend(len(starts) + 1)
            return {start + 1 for start in starts if start < len(text) and is_of(text[start])}

        return find

    def _take(self, char: str) -> bool:
        is_there = self._text.startswith(char, self._place)
        self._place += is_there
        return is_there

    def _next(self) -> str:
        if self._place >= len(self._text):
            raise PatternError("ends too early")
        self._place += 1
        return self._text[self._place - 1]


def _repeat(
    part: _Find, text: str, starts: set[int], least: int, most: int, work: PatternWork
) -> set[int]:
    ends = set(starts) if least == 0 else set[int]()
    for count in range(1, most + 1):
        work.spend(1)
        before, starts = starts, part(text, starts)
        if count >= least:
            if starts <= ends:
                break
            ends |= starts
        elif starts == before:
            # It goes on like this.
            return starts
    return ends


def _at_word_boundaries(text: str, starts: set[int]) -> set[int]:
    is_word = [False, *map(_CLASSES["w"], text), False]
    return {start for start in starts if is_word[start] != is_word[start + 1]}
