"""What held-out steps say of the model of step times, and of the machine."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec
import numpy as np
from latency_model_traffic import HeldOutStep, Ran

from omniserve.others_meter import QUIET_CORES

_STEADY, _FEWEST_STEADY = 9, 3
"""Steps before one that are like it: as many tell what it will take, and as few are enough."""


class Accuracy(msgspec.Struct, frozen=True):
    """1 - |error| / real, of several steps."""

    average: float
    median: float
    p90: float
    """That nine steps of ten reach."""
    p99: float
    num_steps: int


class Figures(msgspec.Struct, frozen=True):
    """Of one model, with the host idle or active. None: there are no such steps."""

    model: str
    host: str
    in_service: Accuracy | None
    """The live scheduler's predictions."""
    undisturbed: Accuracy | None
    """Of these, where no other process used the cores."""
    decodes: Accuracy | None
    prompts: Accuracy | None
    as_fitted: Accuracy | None
    """The profile's alone, nothing learned from steps."""
    repeated: Accuracy | None
    """Noise: each step as the median of the very same step in the other rounds says."""
    steady: Accuracy | None
    """Noise: each decode step as the median of those just before it with the same rows says."""
    steady_in_service: Accuracy | None
    """The live scheduler's predictions of the steps that `steady` is about."""
    fixed_work: Accuracy | None
    """Noise: a millisecond of always the same work, without an engine, likewise."""
    disturbed_share: float


def figures(model: str, host: str, ran: Ran) -> Figures:
    counted = [each for each in ran.steps if each.round > 0]
    quiet = [each for each in counted if each.others_cores <= QUIET_CORES]
    steady = list(_steady(counted))
    return Figures(
        model,
        host,
        in_service=_in_service(counted),
        undisturbed=_in_service(quiet),
        decodes=_in_service(each for each in counted if not each.num_prefill_tokens),
        prompts=_in_service(each for each in counted if each.num_prefill_tokens),
        as_fitted=accuracy((each.fitted_s, each.seconds) for each in counted),
        repeated=accuracy(_repeated(counted)) if host == "idle" else None,
        steady=accuracy((usual_s, each.measured_s) for usual_s, each in steady),
        steady_in_service=_in_service(each for _, each in steady),
        fixed_work=accuracy(
            (median(ran.fixed_work_s[max(0, place - _STEADY) : place]), real)
            for place, real in enumerate(ran.fixed_work_s)
            if place >= _FEWEST_STEADY
        ),
        disturbed_share=1.0 - len(quiet) / len(counted) if counted else 0.0,
    )


def accuracy(pairs: Iterable[tuple[float, float]]) -> Accuracy | None:
    """Of (predicted, real) seconds."""
    each = np.array([max(0.0, 1.0 - abs(said - real) / real) for said, real in pairs])
    if not len(each):
        return None
    p50, p90, p99 = np.quantile(each, (0.5, 0.1, 0.01)).tolist()
    return Accuracy(float(each.mean()), p50, p90, p99, len(each))


def _in_service(steps: Iterable[HeldOutStep]) -> Accuracy | None:
    return accuracy((each.predicted_s, each.measured_s) for each in steps)


def _repeated(steps: Sequence[HeldOutStep]) -> list[tuple[float, float]]:
    same = defaultdict[tuple[int, int, int], list[float]](list)
    for each in steps:
        key = each.place, each.num_decode_rows, each.num_prefill_tokens
        same[key].append(each.measured_s)
    return [
        (median(taken[:place] + taken[place + 1 :]), real)
        for taken in same.values()
        for place, real in enumerate(taken)
        if len(taken) > 1
    ]


def _steady(steps: Sequence[HeldOutStep]) -> Iterable[tuple[float, HeldOutStep]]:
    """Decode steps that follow others with as many rows, and the median of these."""
    before: list[HeldOutStep] = []
    for each in steps:
        is_same = before and (
            each.round == before[-1].round
            and each.num_decode_rows == before[-1].num_decode_rows
            and round(each.num_lane_rows) == round(before[-1].num_lane_rows)
        )
        if each.num_prefill_tokens or not is_same:
            before = []
        if len(before) >= _FEWEST_STEADY:
            yield median(other.measured_s for other in before[-_STEADY:]), each
        if not each.num_prefill_tokens:
            before.append(each)
