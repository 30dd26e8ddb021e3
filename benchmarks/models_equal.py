"""Brings a pair's LS attainment to another's by giving its best-effort server less to do."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from omniserve.bench.colocate.figures import Figures

EQUAL_POINTS = 1.0
"""Two shares of attainment that differ by no more are as good as equal."""
_NOISE = 1e-9


@dataclass(frozen=True, slots=True)
class Trial:
    """One window of a pair."""

    num_be: int
    """Best-effort requests always unfinished."""
    ls_joint: float
    be_tokens_per_s: float

    def holds(self, wanted: float) -> bool:
        return self.ls_joint >= wanted - EQUAL_POINTS / 100 - _NOISE


def trial_of(num_be: int, figures: Figures) -> Trial:
    """No LS request came: none was late."""
    joint = 1.0 if figures.ls_joint is None else figures.ls_joint
    return Trial(num_be, joint, figures.be_tokens_per_s)


Measure = Callable[[int], Awaitable[Trial]]


async def search_equal(
    most: int, wanted: float, measure: Measure, max_windows: int
) -> tuple[Trial, ...]:
    """Windows with `most` best-effort requests, then with one, then with numbers between, until the
    most are found with which the attainment is `wanted`, or windows are used up."""
    trials = [await measure(most)]
    if trials[0].holds(wanted) or most == 1:
        return tuple(trials)
    if max_windows > 1:
        trials.append(await measure(1))
    low, high = 1, most
    while len(trials) < max_windows and trials[1].holds(wanted):
        middle = round((low * high) ** 0.5)
        if middle in (low, high):
            break
        trials.append(await measure(middle))
        low, high = (middle, high) if trials[-1].holds(wanted) else (low, middle)
    return tuple(trials)


def equal_or_nearest(trials: Sequence[Trial], wanted: float) -> Trial:
    """The most best-effort tokens of those that have the attainment. Where none has, of those that
    are as near as any: an attainment that is a point higher is not nearer."""
    holding = [each for each in trials if each.holds(wanted)]
    if not holding:
        nearest = max(each.ls_joint for each in trials)
        holding = [each for each in trials if each.holds(nearest)]
    return max(holding, key=lambda each: each.be_tokens_per_s)
