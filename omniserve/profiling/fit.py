"""From measured steps to coefficients of the step-time model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from omniserve.errors import OmniServeError
from omniserve.others_meter import QUIET_CORES
from omniserve.profiling.accuracy import Accuracy, JudgedStep, accuracy_of
from omniserve.profiling.messages import StepSample
from omniserve.profiling.nonnegative import nonnegative_least_squares
from scheduler.step_time import StepCosts, StepShape

_KNOTS = (1, 2, 4, 8, 16, 32, 64, 65, 128, 256, 512, 1024, 2048, 4096)
"""Two in a row: up to 64 rows are multiplied by kernels of their own on a CPU."""
_FEWEST_STEPS = 8
_HELD_OUT = 4
"""One step of so many judges the fit of the others."""
_NUM_RATIOS = 101
_RATIO_TAIL = 0.005
"""Steps on either side that are too rare for quantiles."""


class TooFewSteps(OmniServeError):
    """The measured steps do not determine a model of step times."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A step shape, and what steps of it took."""

    shape: StepShape
    seconds: float
    around_layers_s: float
    layers_s: float
    ratios: tuple[float, ...]
    """Single steps over `seconds`."""
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
    """Each step of each scene over all passes; steps that follow each other with the same rows are
    one observation."""

    def key(sample: StepSample) -> tuple[int, int, int, int]:
        shape = sample.shape
        # A prompt's chunks differ by what they attend to, so each of them stands for itself.
        place = sample.place if shape.num_prefill_tokens else -1
        return sample.scene, place, shape.num_decode_rows, shape.num_prefill_tokens

    ordered = sorted(samples, key=key)
    return [_observation(list(group)) for _, group in groupby(ordered, key)]


def fit_steps(observations: Sequence[Observation], pipeline_depth: int = 1) -> StepFit:
    """Coefficients that are not negative, for which the relative errors' squares sum to the least.

    With a pipeline the device computes a step while the host makes the next one, so that steps
    take what the device takes, and the host's part is no part of it. Raises TooFewSteps.
    """
    kept = [each for place, each in enumerate(observations) if place % _HELD_OUT != 1]
    held_out = [each for place, each in enumerate(observations) if place % _HELD_OUT == 1]
    if min(len(kept), len(observations)) < _FEWEST_STEPS:
        raise TooFewSteps(f"{len(observations)} kinds of steps were measured; more are needed")
    trial = _fit(kept, pipeline_depth)
    return StepFit(
        _fit(observations, pipeline_depth),
        len(observations),
        fmean(each.is_quiet for each in observations),
        tuple(
            JudgedStep(each.shape, each.seconds, trial.step_s(each.shape))
            for each in held_out
            if each.is_quiet
        ),
        _ratio_quantiles(observations),
        median(each.layers_s for each in observations) if pipeline_depth > 1 else 0.0,
    )


def _observation(samples: Sequence[StepSample]) -> Observation:
    quiet = [sample for sample in samples if sample.others_cores <= QUIET_CORES]
    # Where nobody left us alone, what was disturbed least is the best there is.
    best = quiet or [min(samples, key=lambda each: each.seconds)]
    seconds = median(sample.seconds for sample in best)
    shapes = [sample.shape for sample in best]
    shape = StepShape(
        num_decode_rows=shapes[0].num_decode_rows,
        decode_context_tokens=round(fmean(each.decode_context_tokens for each in shapes)),
        num_prefill_tokens=shapes[0].num_prefill_tokens,
        prefill_pairs=shapes[0].prefill_pairs,
        prefill_context_tokens=shapes[0].prefill_context_tokens,
        num_sampled_rows=shapes[0].num_sampled_rows,
    )
    around_s = median(sample.around_layers_s for sample in best)
    layers_s = median(sample.layers_s for sample in best)
    ratios = tuple(sample.seconds / seconds for sample in best)
    return Observation(shape, seconds, around_s, layers_s, ratios, bool(quiet))


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
                shape.prefill_pairs,
                shape.prefill_context_tokens,
                shape.num_prefill_tokens > 0,
                shape.num_sampled_rows,
            ]
            for shape in shapes
        ],
        dtype=np.float64,
    )
    matrix = np.hstack([_ramps(rows, knots), terms]) / seconds[:, None]
    weights = np.sqrt([1.0 if each.is_quiet else 0.1 for each in observations])
    solution = nonnegative_least_squares(matrix * weights[:, None], weights)
    rungs = np.cumsum(solution[: len(knots)])
    row_s, token_s, pair_s, chunk_token_s, chunk_step_s, sampled_s = solution[len(knots) :].tolist()
    overhead_s = min(_overhead_s(observations), 0.9 * float(rungs[0]))
    in_ladder_s = overhead_s if pipeline_depth == 1 else 0.0
    return StepCosts(
        overhead_s=overhead_s,
        dense_ladder=tuple(
            (knot, float(rung) - in_ladder_s) for knot, rung in zip(knots, rungs, strict=True)
        ),
        decode_row_s=row_s,
        decode_context_token_s=token_s,
        prefill_pair_s=pair_s,
        prefill_context_token_s=chunk_token_s,
        prefill_step_s=chunk_step_s,
        sampled_row_s=sampled_s,
    )


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


def _ratio_quantiles(observations: Sequence[Observation]) -> tuple[float, ...]:
    ratios = [ratio for each in observations if each.is_quiet for ratio in each.ratios]
    if len(ratios) < _NUM_RATIOS:
        return ()
    places = np.linspace(_RATIO_TAIL, 1.0 - _RATIO_TAIL, _NUM_RATIOS)
    return tuple(float(ratio) for ratio in np.quantile(ratios, places))
