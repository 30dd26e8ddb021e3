"""How far forecasts of first tokens are believed, so that as many of those taken are in time as
are to be."""

from math import exp

from scheduler.objectives import Objectives

_STEP = 0.1
_LEAST, _MOST = 0.8, 3.0
_HALF_LIFE_S = 60.0
_TELLING_SHARE = 0.25
"""Of the objective: a forecast below it would not have decided anything, however wrong it was."""


class ForecastMargins:
    """A factor on the forecasts of each tier, in [0.8, 3].

    Each first token of a request that was taken moves it: up by much where it came too late, down
    by little where it was in time, in the ratio of the shares that are wanted. Where the factor
    stands still, exactly that share is in time (Robbins and Monro's stochastic approximation of a
    quantile). How late within its time a token comes teaches nothing: prompts wait while they may.
    What was learnt is half forgotten in a minute, as who is refused teaches nothing either.
    """

    def __init__(self) -> None:
        self._by_tier: dict[str, tuple[float, float]] = {}
        """Factor, and when it was noted."""

    def of(self, tier: str, now_s: float) -> float:
        factor, noted_s = self._by_tier.get(tier, (1.0, now_s))
        return float(factor ** (0.5 ** (max(0.0, now_s - noted_s) / _HALF_LIFE_S)))

    def note(
        self,
        tier: str,
        objectives: Objectives,
        *,
        forecast_s: float,
        measured_s: float,
        now_s: float,
    ) -> None:
        """A first token came after `measured_s`; `forecast_s` is without the factor."""
        is_late = measured_s > objectives.ttft_s
        if not is_late and forecast_s < _TELLING_SHARE * objectives.ttft_s:
            return
        step = _STEP * (objectives.share if is_late else objectives.share - 1.0)
        moved = self.of(tier, now_s) * exp(step)
        self._by_tier[tier] = (min(_MOST, max(_LEAST, moved)), now_s)
