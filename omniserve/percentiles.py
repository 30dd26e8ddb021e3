"""The one way percentiles are computed here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def percentile(values: Sequence[float] | NDArray[np.float64], percent: float) -> float | None:
    """Linear interpolation between the two nearest ranks; None of nothing."""
    return float(np.percentile(values, percent)) if len(values) else None
