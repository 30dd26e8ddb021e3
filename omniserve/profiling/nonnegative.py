"""Least squares, and least deviations, with coefficients that cannot be negative."""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_TOLERANCE = 1e-10
_NUM_REWEIGHTINGS = 12
_SMALL_DEVIATION = 0.02
"""Of a target of 1: smaller ones count as squares, so that the weights stay bounded."""


def nonnegative_least_squares(matrix: _Floats, target: _Floats) -> _Floats:
    """The x >= 0 for which |matrix x - target| is least (Lawson and Hanson, 1974, chapter 23)."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = matrix / scale
    num = scaled.shape[1]
    solution = np.zeros(num)
    is_free = np.zeros(num, dtype=bool)
    # Each round frees one more coefficient; the bound is theirs, to end despite rounding.
    for _ in range(3 * num):
        gradient = scaled.T @ (target - scaled @ solution)
        gradient[is_free] = -np.inf
        best = int(np.argmax(gradient))
        if is_free.all() or gradient[best] <= _TOLERANCE * max(1.0, float(np.abs(target).max())):
            break
        is_free[best] = True
        solution = _pull_inside(scaled, target, solution, is_free)
    unscaled: _Floats = solution / scale
    return unscaled


def nonnegative_least_deviations(matrix: _Floats, target: _Floats, weights: _Floats) -> _Floats:
    """The x >= 0 for which the weighted sum of |matrix x - target| is about the least.

    Squares, weighted anew by how large each deviation was (Schlossmacher, 1973); a few outliers
    then pull no more than others.
    """
    reweighted = weights
    solution = np.zeros(matrix.shape[1])
    for _ in range(_NUM_REWEIGHTINGS):
        root = np.sqrt(reweighted)
        solution = nonnegative_least_squares(matrix * root[:, None], target * root)
        deviations = np.abs(matrix @ solution - target)
        reweighted = weights / np.maximum(deviations, _SMALL_DEVIATION)
    return solution


def _pull_inside(
    matrix: _Floats, target: _Floats, solution: _Floats, is_free: NDArray[np.bool_]
) -> _Floats:
    """The best solution of the free coefficients; those that turn negative are freed no more."""
    while True:
        best = np.zeros_like(solution)
        best[is_free] = np.linalg.lstsq(matrix[:, is_free], target, rcond=None)[0]
        negative = is_free & (best <= 0.0)
        if not negative.any():
            return best
        steps = solution[negative] / (solution[negative] - best[negative])
        solution = solution + float(steps.min()) * (best - solution)
        is_free &= solution > _TOLERANCE
        solution[~is_free] = 0.0
