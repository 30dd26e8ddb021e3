"""Figures of arrivals, lengths and prefixes that tell traces apart."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

MIN_GAPS = 10
"""A window with fewer gaps says nothing about their variation."""


def gap_cv(times_s: Numbers) -> float | None:
    """Standard deviation over mean of the gaps between arrivals: 1 where they are Poisson."""
    gaps_s = np.diff(times_s)
    if len(gaps_s) < MIN_GAPS or not gaps_s.any():
        return None
    return float(gaps_s.std() / gaps_s.mean())


def window_gap_cvs(times_s: Numbers, window_s: float = 60.0) -> list[float]:
    """The same of each window that has enough gaps, both ends within it."""
    windows = (times_s // window_s).astype(np.int64)
    cuts = np.flatnonzero(np.diff(windows)) + 1
    cvs = (gap_cv(part) for part in np.split(times_s, cuts))
    return [cv for cv in cvs if cv is not None]


def counts(times_s: Numbers, window_s: float) -> npt.NDArray[np.int64]:
    """Arrivals in each whole window up to the last arrival: a window that is cut short would look
    like a lull."""
    num_windows = int(times_s[-1] // window_s) if len(times_s) else 0
    windows = (times_s // window_s).astype(np.int64)
    return np.bincount(windows, minlength=num_windows)[:num_windows]


def fano(times_s: Numbers, window_s: float) -> float | None:
    """Variance over mean of the arrivals in a window: 1 at every length where they are Poisson."""
    arrivals = counts(times_s, window_s)
    if len(arrivals) < 2 or not arrivals.any():
        return None
    return float(arrivals.var() / arrivals.mean())


def autocorrelation(values: Sequence[float] | npt.NDArray[np.int64], lag: int) -> float | None:
    """Of a sequence with itself, `lag` places later."""
    around = np.asarray(values, dtype=np.float64)
    if len(around) <= lag + 2 or not around.std():
        return None
    around = around - around.mean()
    return float((around[:-lag] * around[lag:]).sum() / (around**2).sum())


def spearman(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float | None:
    """Correlation of the ranks; equal values share the mean of their ranks."""
    if len(first) < 3:
        return None
    first_ranks, second_ranks = _mean_ranks(first), _mean_ranks(second)
    if not first_ranks.std() or not second_ranks.std():
        return None
    return float(np.corrcoef(first_ranks, second_ranks)[0, 1])


def reused_block_share(prefix_hashes: Sequence[Sequence[int]]) -> float | None:
    """Share of the prompt blocks that an earlier request has had too: what a cache without limit
    would have; None where there are no hashes."""
    seen: set[int] = set()
    num_blocks = num_reused = 0
    for hashes in prefix_hashes:
        num_blocks += len(hashes)
        num_reused += sum(each in seen for each in hashes)
        seen.update(hashes)
    return num_reused / num_blocks if num_blocks else None


def once_used_block_share(prefix_hashes: Sequence[Sequence[int]]) -> float | None:
    """Share of the distinct blocks that one request has alone."""
    # Counted in Python: hashes may have more than 63 bits.
    uses = Counter(each for hashes in prefix_hashes for each in hashes)
    return sum(count == 1 for count in uses.values()) / len(uses) if uses else None


def _mean_ranks(values: npt.NDArray[np.int64]) -> Numbers:
    _, place, repeats = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(repeats)
    ranks: Numbers = (last - (repeats - 1) / 2)[place]
    return ranks
