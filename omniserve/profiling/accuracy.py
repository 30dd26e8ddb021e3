"""How well a model of step times tells steps that it was not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omniserve.profiling.judged_steps import JudgedStep


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of several steps."""

    mean: float
    p90: float
    """That nine steps of ten reach."""
    num_steps: int


def accuracy_of(steps: Sequence[JudgedStep]) -> Accuracy | None:
    """None of no steps."""
    if not steps:
        return None
    each = [step.accuracy for step in steps]
    return Accuracy(float(np.mean(each)), float(np.quantile(each, 0.1)), len(each))


def thinned(steps: Sequence[JudgedStep], most: int) -> tuple[JudgedStep, ...]:
    """About evenly from all of them."""
    stride = -(-len(steps) // most) if steps else 1
    return tuple(steps[::stride])
