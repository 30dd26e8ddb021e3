"""What one daemon for two models is expected to show, beside what it showed."""

from collections.abc import Iterator

from models_bench import Result
from models_equal import EQUAL_POINTS
from models_layouts import LS_ALONE, ONE, title_of

from omniserve.bench.colocate.conditions import PEER_SHARE
from omniserve.bench.colocate.control.figures import lost_points, pooled
from omniserve.bench.colocate.figures import Cell, Figures, Spread
from omniserve.bench.colocate.goals import GoalResult, wait_goal

MOST_LOST_POINTS = 1.0
LEAST_LS_GAIN = 1.4
LEAST_BE_GAIN = 1.5
_SCENE = "LS and BE on two models"
_PEER_SLACK = 0.05
"""Windows of other arrivals than those by which the rate was found hold somewhat more or less."""


def joint(window: Figures) -> float | None:
    return window.ls_joint


def number(window: Figures) -> int:
    return window.num_ls


def tokens(window: Figures) -> float:
    return window.be_tokens_per_s


def goals(result: Result) -> list[GoalResult]:
    """Those against somebody only where he was measured."""
    own = result.cell(ONE)
    return [
        *_lost(own, result.cell(LS_ALONE)),
        *wait_goal(_SCENE, own),
        *(goal for each in vllm_cells(result) for goal in _ls_gain(own, each)),
        *_be_gain(result, own),
    ]


def vllm_cells(result: Result) -> list[Cell]:
    return [each for each in result.cells if each.contender.startswith("vllm-")]


def fairest_pair(result: Result) -> Cell | None:
    """The daemons with the most best-effort tokens of those that have one daemon's attainment, over
    all rounds; where none has, of those nearest to it."""
    cells = [each for each in result.cells if each.contender.startswith("omniserve-")]
    shares = {each.contender: pooled(each, joint, number) or 0.0 for each in cells}
    own = pooled(result.cell(ONE), joint, number) or 0.0
    if not cells:
        return None
    least = min(own, max(shares.values())) - EQUAL_POINTS / 100
    equal = [each for each in cells if shares[each.contender] >= least]
    return max(equal, key=lambda each: _median(each.spread(tokens)))


def _lost(own: Cell, alone: Cell) -> Iterator[GoalResult]:
    lost = lost_points(own, alone, joint, number)
    if lost is not None:
        yield GoalResult(
            _SCENE,
            "LS joint attainment, lost to LS alone with all cores",
            f"at most {MOST_LOST_POINTS:g} point",
            f"{lost.median:.1f} points ({lost.low:.1f} to {lost.high:.1f})",
            round(lost.median, 1) <= MOST_LOST_POINTS,
        )


def _ls_gain(own: Cell, peer: Cell) -> Iterator[GoalResult]:
    share, theirs = pooled(own, joint, number), pooled(peer, joint, number)
    if share is None or theirs is None:
        return
    low, high = PEER_SHARE
    is_there = low - _PEER_SLACK <= theirs <= high + _PEER_SLACK
    gain = own.ratio(peer, joint)
    shown = f"{share:.1%} against {theirs:.1%}"
    if theirs:
        shown = f"{share / theirs:.2f} x{_range(gain)}, {shown}"
    yield GoalResult(
        _SCENE,
        f"LS joint attainment over that of {title_of(peer.contender)}",
        f"{LEAST_LS_GAIN:g} x where that is {low:.0%} to {high:.0%}",
        shown,
        share / theirs >= LEAST_LS_GAIN if is_there else None,
    )


def _be_gain(result: Result, own: Cell) -> Iterator[GoalResult]:
    pair = fairest_pair(result)
    gain = None if pair is None else own.ratio(pair, tokens)
    if pair is None or gain is None:
        return
    lost = lost_points(own, pair, joint, number)
    points = 0.0 if lost is None else lost.median
    yield GoalResult(
        _SCENE,
        f"BE tokens/s over those of {title_of(pair.contender)}, at equal LS attainment",
        f"{LEAST_BE_GAIN:g} x, LS within {EQUAL_POINTS:g} point",
        f"{gain.median:.2f} x{_range(gain)}, its LS {_compared(points)}",
        # What its LS lacks it may have been paid for.
        gain.median >= LEAST_BE_GAIN and round(points, 1) <= EQUAL_POINTS,
    )


def _compared(lost_points: float) -> str:
    """Of the pair, by what one daemon has less."""
    if round(abs(lost_points), 1) <= EQUAL_POINTS:
        return "is equal"
    above = "above" if lost_points > 0 else "below"
    return f"{abs(lost_points):.1f} points {above} one daemon's"


def _range(spread: Spread | None) -> str:
    return "" if spread is None else f" ({spread.low:.2f} to {spread.high:.2f})"


def _median(spread: Spread | None) -> float:
    return 0.0 if spread is None else spread.median
