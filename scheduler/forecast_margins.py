"""How far forecasts of first tokens are believed, so that as many of them hold as are to."""

from math import exp

from scheduler.objectives import Objectives

_STEP = 0.1
_LEAST, _MOST = 0.5, 4.0
_TELLING_SHARE = 0.25
"""Of the objective: a forecast below it would not have decided anything, however wrong it was."""


class ForecastMargins:
    """A factor on the forecasts of each tier, in [0.5, 4].

    Each first token moves it: up by much where it came later than was forecast with the factor,
    down by little where it came earlier, in the ratio of the shares that are wanted. Where the
    factor stands still, exactly that share of forecasts is not exceeded (Robbins and Monro's
    stochastic approximation of a quantile).
    """

    def __init__(self) -> None:
        self._by_tier: dict[str, float] = {}

    def of(self, tier: str) -> float:
        return self._by_tier.get(tier, 1.0)

    def note(self, tier: str, objectives: Objectives, forecast_s: float, measured_s: float) -> None:
        """A first token came after `measured_s`; `forecast_s` is without the factor."""
        if max(forecast_s, measured_s) < _TELLING_SHARE * objectives.ttft_s:
            return
        factor = self.of(tier)
        is_late = measured_s > factor * forecast_s
        moved = factor * exp(_STEP * (objectives.share if is_late else objectives.share - 1.0))
        self._by_tier[tier] = min(_MOST, max(_LEAST, moved))
