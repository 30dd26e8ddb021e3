"""What a comparison is expected to show, beside what it showed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omniserve.bench.colocate.comparison import SceneResult
from omniserve.bench.colocate.conditions import PEER_SHARE
from omniserve.bench.colocate.contenders import (
    LS_ALONE,
    PIGGYBACKING,
    VLLM_PRIORITY,
    VLLM_SPLIT,
)
from omniserve.bench.colocate.figures import Cell, Figures, spread_of
from omniserve.bench.colocate.layer_waits import WAIT_SHARE

MAX_LOST_POINTS = 1.0
"""Of LS joint attainment: to LS alone, and to vLLM where tokens per second are compared."""
MAX_WAIT_LAYERS = 1.0
LS_GAIN = 1.4
BE_GAIN_SHORT, BE_GAIN_WHOLE_SHORT, BE_GAIN_WHOLE_AMPLE = 3.0, 1.0, 1.4


@dataclass(frozen=True, slots=True)
class GoalResult:
    """One goal in one scene."""

    scene: str
    text: str
    wanted: str
    shown: str
    is_met: bool | None
    """None where the goal says nothing of what was measured."""

    @property
    def verdict(self) -> str:
        if self.is_met is None:
            return "not judged"
        return "met" if self.is_met else "missed"


def goal_results(results: Sequence[SceneResult], num_be: int) -> list[GoalResult]:
    """Of every scene; those against vLLM only where it was measured."""
    return [each for result in results for each in _of_scene(result, num_be)]


def _of_scene(result: SceneResult, num_be: int) -> Iterator[GoalResult]:
    own, alone = result.cell(PIGGYBACKING), result.cell(LS_ALONE)
    peer = result.cell(VLLM_PRIORITY) or result.cell(VLLM_SPLIT)
    title = result.scene.title
    assert own is not None and alone is not None
    lost = _lost_points(own, alone)
    if lost is not None:
        yield GoalResult(
            title,
            "LS joint attainment, lost to LS alone",
            f"at most {MAX_LOST_POINTS:g} point",
            f"{lost:.1f} points",
            lost <= MAX_LOST_POINTS,
        )
    yield from wait_goal(title, own)
    if peer is None:
        return
    yield from _ls_gain(title, own, peer)
    yield from _be_gain(title, own, peer, _least_be_gain(result, num_be))


def wait_goal(title: str, own: Cell) -> Iterator[GoalResult]:
    """Where a daemon served both of two models, and some step could have waited."""
    waits = own.layer_waits
    if waits is not None and waits.layers.num_steps:
        yield GoalResult(
            title,
            "LS wait behind layers of the other model, p99",
            "at most one layer",
            waits.text,
            waits.layers.bound_of(WAIT_SHARE) <= MAX_WAIT_LAYERS,
        )


def _ls_gain(title: str, own: Cell, peer: Cell) -> Iterator[GoalResult]:
    gain = own.ratio(peer, lambda window: window.ls_joint)
    share = peer.spread(lambda window: window.ls_joint)
    if share is None:
        return
    wanted = f"{LS_GAIN:g} x where vLLM holds {PEER_SHARE[0]:.0%} to {PEER_SHARE[1]:.0%}"
    shown = f"vLLM holds {share.median:.0%}"
    if gain is not None:
        shown = f"{gain.median:.2f} x ({shown})"
    is_met = gain.median >= LS_GAIN if gain is not None and _is_at_goal(share.median) else None
    yield GoalResult(title, "LS joint attainment over vLLM's", wanted, shown, is_met)


def _be_gain(title: str, own: Cell, peer: Cell, least: float) -> Iterator[GoalResult]:
    """Tokens that LS paid for do not count: its attainment has to be vLLM's at least."""
    tokens = own.ratio(peer, lambda window: window.be_tokens_per_s)
    if tokens is None:
        return
    lost = _lost_points(own, peer)
    has_paid = lost is not None and lost > MAX_LOST_POINTS
    shown = f"{tokens.median:.2f} x" + (f", LS {lost:.1f} points below vLLM's" if has_paid else "")
    yield GoalResult(
        title,
        "BE tokens/s over vLLM's, LS no worse",
        f"{least:g} x",
        shown,
        tokens.median >= least and not has_paid,
    )


def _lost_points(own: Cell, other: Cell) -> float | None:
    """Of the rounds' differences the median; positive where LS has less than with the other."""
    pairs = zip(own.windows, other.windows, strict=True)
    differences = [_difference(base, window) for window, base in pairs]
    spread = spread_of(differences)
    return None if spread is None else spread.median


def _difference(base: Figures, window: Figures) -> float | None:
    if base.ls_joint is None or window.ls_joint is None:
        return None
    return 100 * (base.ls_joint - window.ls_joint)


def _is_at_goal(peer_share: float) -> bool:
    """Elsewhere a ratio of shares says little: vLLM's is near nothing, or near all."""
    return PEER_SHARE[0] - 0.05 <= peer_share <= PEER_SHARE[1] + 0.05


def _least_be_gain(result: SceneResult, num_be: int) -> float:
    is_ample = result.scene.be_requests_in_kv >= num_be
    if result.scene.frame.is_emulated:
        # The goal speaks of short memory; where there is enough, nobody may lose.
        return BE_GAIN_WHOLE_SHORT if is_ample else BE_GAIN_SHORT
    return BE_GAIN_WHOLE_AMPLE if is_ample else BE_GAIN_WHOLE_SHORT
