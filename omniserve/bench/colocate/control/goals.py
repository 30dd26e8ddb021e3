"""What control is expected to show, beside what it showed."""

from collections.abc import Iterator, Sequence

from omniserve.bench.colocate.contenders import CONTROL, LS_ALONE, NO_ADMISSION, NO_CONTROL
from omniserve.bench.colocate.control.comparison import ControlResult
from omniserve.bench.colocate.control.figures import lost_points, pooled
from omniserve.bench.colocate.figures import Cell, Figures, Spread
from omniserve.bench.colocate.goals import GoalResult

MAX_LOST_POINTS = {"steady": 1.0, "bursty": 3.0}
"""Of LS joint attainment, to LS alone with all cores."""
CLEAR_POINTS = 10.0
"""Lost without control: so many are no chance."""
LEAST_BE_SHARE = 0.85
ADMISSION_POINTS = 30.0
"""Of TTFT attainment, of the requests that were taken."""


def control_goals(results: Sequence[ControlResult]) -> list[GoalResult]:
    """Of every scene and load; those that need a contender only where it was measured."""
    return [goal for result in results for goal in _of_load(result)]


def _of_load(result: ControlResult) -> Iterator[GoalResult]:
    own = result.cell(CONTROL)
    if result.load.name == "overload":
        unadmitted = result.cell(NO_ADMISSION)
        if own and unadmitted:
            yield from _admission(result, own, unadmitted)
        return
    alone, uncontrolled = result.cell(LS_ALONE), result.cell(NO_CONTROL)
    if own and alone:
        yield from _lost(result, own, alone)
    if uncontrolled and alone and result.load.name == "bursty":
        yield from _lost_without(result, uncontrolled, alone)
    if own and uncontrolled:
        yield from _best_effort(result, own, uncontrolled)


def _lost(result: ControlResult, own: Cell, alone: Cell) -> Iterator[GoalResult]:
    lost, most = _joint_lost(own, alone), MAX_LOST_POINTS[result.load.name]
    if lost is not None:
        yield GoalResult(
            result.title,
            "LS joint attainment of all sent, lost to LS alone with all cores",
            f"at most {most:g} point{'' if most == 1 else 's'}",
            _points(lost),
            _rounded(lost) <= most,
        )


def _lost_without(result: ControlResult, own: Cell, alone: Cell) -> Iterator[GoalResult]:
    lost = _joint_lost(own, alone)
    if lost is not None:
        yield GoalResult(
            result.title,
            "the same without control: falls clearly",
            f"at least {CLEAR_POINTS:g} points",
            _points(lost),
            _rounded(lost) >= CLEAR_POINTS,
        )


def _best_effort(result: ControlResult, own: Cell, base: Cell) -> Iterator[GoalResult]:
    ratio = own.ratio(base, lambda window: window.be_tokens_per_s)
    if ratio is not None:
        yield GoalResult(
            result.title,
            "BE tokens/s over those without control",
            f"at least {LEAST_BE_SHARE:.0%}",
            f"{ratio.median:.0%} ({ratio.low:.0%} to {ratio.high:.0%})",
            ratio.median >= LEAST_BE_SHARE,
        )


def _admission(result: ControlResult, own: Cell, base: Cell) -> Iterator[GoalResult]:
    """Refusing everybody must not look good, so what it does to all requests is told as well."""
    lost = lost_points(
        own, base, lambda each: each.ls_ttft_share_of_taken, lambda each: each.num_taken
    )
    if lost is None:
        return
    # A difference of nothing has no sign.
    gain = Spread(0.0 - lost.median, 0.0 - lost.high, 0.0 - lost.low)
    sent = [_percent(pooled(cell, _ttft_share, _num_ls)) for cell in (base, own)]
    goodput = [
        _median(cell.spread(lambda each: each.ls_goodput_tokens_per_s)) for cell in (base, own)
    ]
    yield GoalResult(
        result.title,
        "TTFT attainment of the requests taken, gained by admission",
        f"at least {ADMISSION_POINTS:g} points",
        f"{_points(gain)}; of all sent {sent[0]} to {sent[1]}; LS goodput {goodput[0]} to "
        f"{goodput[1]} tokens/s",
        _rounded(gain) >= ADMISSION_POINTS,
    )


def _joint_lost(own: Cell, base: Cell) -> Spread | None:
    return lost_points(own, base, lambda window: window.ls_joint, _num_ls)


def _ttft_share(window: Figures) -> float | None:
    return window.ls_ttft_share


def _num_ls(window: Figures) -> int:
    return window.num_ls


def _rounded(points: Spread) -> float:
    """What is shown as 1.0 is not held to be more."""
    return round(points.median, 1)


def _points(spread: Spread) -> str:
    return f"{spread.median:.1f} points ({spread.low:.1f} to {spread.high:.1f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _median(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:,.0f}"
