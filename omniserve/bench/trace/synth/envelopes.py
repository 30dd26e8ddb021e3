"""How the rate of arrivals changes from window to window; each gives relative rates."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rates = npt.NDArray[np.float64]


class Envelope(Protocol):
    """Relative rates of successive windows; only their proportions matter."""

    @property
    def window_s(self) -> float: ...

    def rates(self, num_windows: int, rng: np.random.Generator) -> Rates:
        """None is negative."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """The requests that a real service got in each window, again and again."""

    counts: tuple[int, ...]
    window_s: float = 60.0

    def rates(self, num_windows: int, rng: np.random.Generator) -> Rates:
        rates = np.resize(np.array(self.counts, dtype=np.float64), num_windows)
        # A trace needs a window in which something arrives; so short a one may have recorded none.
        return rates if rates.any() else np.ones(num_windows)


@dataclass(frozen=True, slots=True)
class Wandering:
    """The logarithm of the rate follows its own past: log-AR(1)."""

    memory: float
    """Correlation of successive windows, in [0, 1)."""
    cv: float
    """Standard deviation of the rate over its mean; 0 for a steady rate."""
    day_swing: float = 0.0
    """Share of the mean by which the rate swings over 24 hours, in [0, 1); highest at noon."""
    window_s: float = 60.0

    def rates(self, num_windows: int, rng: np.random.Generator) -> Rates:
        spread = np.sqrt(np.log1p(self.cv**2))
        shocks = rng.standard_normal(num_windows)
        levels = np.empty(num_windows)
        level = 0.0
        for window, shock in enumerate(shocks):
            # The first one is drawn from where the others will settle.
            keep = self.memory if window else 0.0
            level = keep * level + np.sqrt(1 - keep**2) * shock
            levels[window] = level
        days = (np.arange(num_windows) + 0.5) * self.window_s / 86_400
        rates: Rates = np.exp(spread * levels) * (1 - self.day_swing * np.cos(2 * np.pi * days))
        return rates


@dataclass(frozen=True, slots=True)
class OnOff:
    """Windows without a request between others of very different rates."""

    idle_share: float
    """Share of windows without a request, in [0, 1)."""
    cv: float
    """Of the rates of the other windows, which are lognormal."""
    window_s: float = 60.0

    def rates(self, num_windows: int, rng: np.random.Generator) -> Rates:
        spread = np.sqrt(np.log1p(self.cv**2))
        rates = np.exp(spread * rng.standard_normal(num_windows))
        is_idle = rng.random(num_windows) < self.idle_share
        # A trace needs a window in which something arrives.
        return rates if is_idle.all() else np.where(is_idle, 0.0, rates)


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """Everything arrives at the beginning, as from a batch job."""

    window_s: float = 60.0

    def rates(self, num_windows: int, rng: np.random.Generator) -> Rates:
        rates = np.zeros(num_windows)
        rates[0] = 1.0
        return rates
