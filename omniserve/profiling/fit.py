"""From measured steps to coefficients of the step-time model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from omniserve.errors import OmniServeError
from omniserve.others_meter import QUIET_CORES
from omniserve.profiling.accuracy import Accuracy, accuracy_of
from omniserve.profiling.judged_steps import JudgedStep
from omniserve.profiling.messages import StepSample
from omniserve.profiling.nonnegative import nonnegative_least_deviations
from scheduler.step_time import StepCosts, StepShape

_KNOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 65, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
"""Two in a row: up to 64 rows are multiplied by kernels of their own on a CPU."""
_DISTURBED_WEIGHT = 0.1
"""Of a step that nobody left alone, where one that was counts 1."""
_FEWEST_STEPS = 8
_HELD_OUT = 4
"""The steps of one scene of so many judge the fit of the others."""
_COLUMNS = (
    "decode_row_s",
    "decode_context_token_s",
    "prefill_token_s",
    "prefill_pair_s",
    "prefill_context_token_s",
    "prefill_step_s",
    "prefill_chunk_s",
    "sampled_row_s",
    "cold_step_s",
)
"""Costs besides the ladder, in the order of the columns of what is fitted."""
_PAIRS_OF_A_ROW = 4096
"""So many pairs of tokens that attend to each other may take as long as a row of the dense layers,
whatever decodes say: 6H have as many operations in a model of hidden size H."""
_NUM_RATIOS = 101
_RATIO_TAIL = 0.005
"""Steps on either side that are too rare for quantiles."""


class TooFewSteps(OmniServeError):
    """The measured steps do not determine a model of step times."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A step of a scene, and what it took in several passes."""

    scene: int
    shape: StepShape
    seconds: float
    around_layers_s: float
    layers_s: float
    singles_s: tuple[float, ...]
    """Of each pass that counts."""
    is_quiet: bool


@dataclass(frozen=True, slots=True)
class StepFit:
    """Coefficients, and how well they tell steps that they were not fitted to."""

    costs: StepCosts
    num_observations: int
    quiet_share: float
    """Of the observations: those that nobody disturbed."""
    judged: tuple[JudgedStep, ...]
    """Undisturbed kinds, by the fit of the others."""
    ratio_quantiles: tuple[float, ...]
    launch_s: float = 0.0
    """Host time of launching the layers, where the device then works by itself."""

    @property
    def held_out(self) -> Accuracy | None:
        """Of the judged ones; None where all were disturbed."""
        return accuracy_of(self.judged)


def observe(samples: Sequence[StepSample]) -> list[Observation]:
    """Each step of each scene over all passes."""

    def key(sample: StepSample) -> tuple[int, int, int, int]:
        shape = sample.shape
        return sample.scene, sample.place, shape.num_decode_rows, shape.num_prefill_tokens

    ordered = sorted(samples, key=key)
    return [_observation(list(group)) for _, group in groupby(ordered, key)]


def fit_steps(observations: Sequence[Observation], pipeline_depth: int = 1) -> StepFit:
    """Coefficients that are not negative, for which the relative errors sum to the least: half of
    all steps take longer, whatever the slowest of them do.

    With a pipeline the device computes a step while the host makes the next one, so that steps
    take what the device takes, and the host's part is no part of it. Raises TooFewSteps.
    """
    kept = [each for each in observations if each.scene % _HELD_OUT != 1]
    held_out = [each for each in observations if each.scene % _HELD_OUT == 1]
    if min(len(kept), len(observations)) < _FEWEST_STEPS:
        raise TooFewSteps(f"{len(observations)} kinds of steps were measured; more are needed")
    trial = _fit(kept, pipeline_depth)
    costs = _fit(observations, pipeline_depth)
    return StepFit(
        costs,
        len(observations),
        fmean(each.is_quiet for each in observations),
        tuple(
            JudgedStep(each.shape, each.seconds, trial.step_s(each.shape))
            for each in held_out
            if each.is_quiet
        ),
        _ratio_quantiles(observations, costs, pipeline_depth),
        median(each.layers_s for each in observations) if pipeline_depth > 1 else 0.0,
    )


def _observation(samples: Sequence[StepSample]) -> Observation:
    quiet = [sample for sample in samples if sample.others_cores <= QUIET_CORES]
    # Where nobody left us alone, what was disturbed least is the best there is.
    best = quiet or [min(samples, key=lambda each: each.seconds)]
    coldness = fmean(sample.shape.coldness for sample in best)
    return Observation(
        best[0].scene,
        replace(best[0].shape, coldness=coldness),
        _usual(sample.seconds for sample in best),
        _usual(sample.around_layers_s for sample in best),
        _usual(sample.layers_s for sample in best),
        tuple(sample.seconds for sample in best),
        bool(quiet),
    )


def _usual(seconds: Iterable[float]) -> float:
    """The median; of two the shorter, as the first pass pays for what is made on first use."""
    ordered = sorted(seconds)
    return ordered[0] if len(ordered) == 2 else median(ordered)


def _fit(observations: Sequence[Observation], pipeline_depth: int) -> StepCosts:
    shapes = [each.shape for each in observations]
    seconds = np.array([each.seconds for each in observations])
    rows = np.array([shape.num_decode_rows + shape.num_prefill_tokens for shape in shapes])
    knots = _knots(rows)
    terms = np.array(
        [
            [
                shape.num_decode_rows,
                shape.decode_context_tokens,
                shape.num_prefill_tokens,
                shape.prefill_pairs,
                shape.prefill_context_tokens,
                shape.num_prefill_tokens > 0,
                shape.num_prefill_chunks,
                shape.num_sampled_rows,
                shape.coldness,
            ]
            for shape in shapes
        ],
        dtype=np.float64,
    )
    matrix = np.hstack([_ramps(rows, knots), terms]) / seconds[:, None]
    weights = np.array([1.0 if each.is_quiet else _DISTURBED_WEIGHT for each in observations])
    solution = nonnegative_least_deviations(matrix, np.ones(len(shapes)), weights)
    most_pair_s = _most_pair_s(solution, knots)
    pair = len(knots) + _COLUMNS.index("prefill_pair_s")
    if solution[pair] > most_pair_s:
        solution = _with_fixed(matrix, weights, pair, most_pair_s)
    rungs = np.cumsum(solution[: len(knots)])
    found: dict[str, float] = dict(zip(_COLUMNS, solution[len(knots) :].tolist(), strict=True))
    overhead_s = min(_overhead_s(observations), 0.9 * float(rungs[0]))
    in_ladder_s = overhead_s if pipeline_depth == 1 else 0.0
    return StepCosts(
        overhead_s=overhead_s,
        dense_ladder=tuple(
            (knot, float(rung) - in_ladder_s) for knot, rung in zip(knots, rungs, strict=True)
        ),
        **found,
    )


def _most_pair_s(solution: NDArray[np.float64], knots: Sequence[int]) -> float:
    """What a pair of tokens may take in a prompt's attention.

    A decode that attends to one token more computes as much, and reads its key and value for one
    row alone. Few steps hardly tell pairs from rows, and what is wrong with the one grows with the
    square of a prompt that is longer than all that were measured.
    """
    found: dict[str, float] = dict(zip(_COLUMNS, solution[len(knots) :].tolist(), strict=True))
    row_s = float(solution[: len(knots)].sum()) / knots[-1] + found["prefill_token_s"]
    return max(found["decode_context_token_s"], row_s / _PAIRS_OF_A_ROW)


def _with_fixed(
    matrix: NDArray[np.float64], weights: NDArray[np.float64], column: int, value: float
) -> NDArray[np.float64]:
    """The best of the other coefficients where that of one column is given."""
    others = np.delete(matrix, column, axis=1)
    target = np.ones(len(matrix)) - value * matrix[:, column]
    return np.insert(nonnegative_least_deviations(others, target, weights), column, value)


def _knots(rows: NDArray[np.int64]) -> list[int]:
    """Those between which there is something measured, up to the most rows of a step."""
    most = int(rows.max())
    knots = [int(rows.min())]
    for knot in [knot for knot in _KNOTS if knots[0] < knot < most] + [most]:
        if ((rows > knots[-1]) & (rows <= knot)).any():
            knots.append(knot)
    return knots


def _ramps(rows: NDArray[np.int64], knots: Sequence[int]) -> NDArray[np.float64]:
    """[steps, knots] of 0 to 1: how far a step's rows have come to each knot from the one before.

    A ladder that ascends is a sum of these with coefficients that are not negative.
    """
    columns = [np.ones(len(rows))]
    for left, right in zip(knots, knots[1:], strict=False):
        columns.append(np.clip((rows - left) / (right - left), 0.0, 1.0))
    return np.stack(columns, axis=1)


def _overhead_s(observations: Sequence[Observation]) -> float:
    """Of steps with few rows: what is not spent in their layers."""
    fewest = sorted(observations, key=lambda each: each.shape.num_sampled_rows)
    return median(each.around_layers_s for each in fewest[: max(3, len(fewest) // 8)])


def _ratio_quantiles(
    observations: Sequence[Observation], costs: StepCosts, pipeline_depth: int
) -> tuple[float, ...]:
    # What the host does beside a pipeline is no part of what its steps take.
    hidden_s = costs.overhead_s if pipeline_depth > 1 else 0.0
    ratios = [
        seconds / (costs.step_s(each.shape) - hidden_s)
        for each in observations
        if each.is_quiet
        for seconds in each.singles_s
    ]
    if len(ratios) < _NUM_RATIOS:
        return ()
    places = np.linspace(_RATIO_TAIL, 1.0 - _RATIO_TAIL, _NUM_RATIOS)
    return tuple(float(ratio) for ratio in np.quantile(ratios, places))
