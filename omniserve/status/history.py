"""The last minutes, a sample a second."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

SAMPLE_S = 1.0
MAX_SAMPLES = 301
"""Five minutes of differences."""
RATE_S = 5.0
"""Rates of late are means over so long."""

ModelTier = tuple[str, str]
"""Names of model and tier."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is worth knowing of a moment that has passed."""

    at_s: float
    output_tokens: Mapping[ModelTier, int]
    """Since the server started."""
    kv_shares: Mapping[str, float]
    """By model: part of its device KV in use."""
    busy_share: float
    """Of the cores."""


class StatusHistory:
    """Samples in the order in which they were taken; the oldest are forgotten."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)

    def tokens_per_s(self) -> dict[ModelTier, float]:
        """Of late; empty before there are two samples."""
        if len(self._samples) < 2:
            return {}
        newest = self._samples[-1]
        recent = [each for each in self._samples if newest.at_s - each.at_s <= RATE_S]
        # At least the sample before, however long ago that was.
        oldest = recent[0] if len(recent) > 1 else self._samples[-2]
        return _rates(oldest, newest)

    def document(self) -> dict[str, object]:
        """As JSON values: points `interval_s` apart, the newest last. A series that was zero all
        the time is left out."""
        pairs = list(pairwise(self._samples))
        rates = [_rates(before, after) for before, after in pairs]
        names = sorted({name for each in rates for name in each})
        models = sorted({model for _, after in pairs for model in after.kv_shares})
        return {
            "interval_s": SAMPLE_S,
            "num_points": len(pairs),
            "output_tokens_per_s": [
                {"model": model, "tier": tier, "points": points}
                for model, tier in names
                if any(points := _rounded(each.get((model, tier), 0.0) for each in rates))
            ],
            "kv_shares": [
                {"model": model, "points": points}
                for model in models
                if any(points := _rounded(after.kv_shares.get(model, 0.0) for _, after in pairs))
            ],
            "busy_share": _rounded(after.busy_share for _, after in pairs),
        }


def _rates(before: Sample, after: Sample) -> dict[ModelTier, float]:
    passed_s = after.at_s - before.at_s
    if passed_s <= 0:
        return dict.fromkeys(after.output_tokens, 0.0)
    return {
        name: (total - before.output_tokens.get(name, 0)) / passed_s
        for name, total in after.output_tokens.items()
    }


def _rounded(points: Iterable[float]) -> list[float]:
    return [round(point, 3) for point in points]
