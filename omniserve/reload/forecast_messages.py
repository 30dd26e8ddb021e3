"""What the daemon asks of a simulation of its tiers, and the answer: JSON over a pipe."""

import msgspec

from omniserve.profiling.profile import Profile
from omniserve.requests import TierSettings
from omniserve.settings import EngineSettings


class PastRequest(msgspec.Struct, frozen=True, array_like=True):
    """A sequence that arrived, and whose it would be."""

    at_s: float
    """Since the first of them."""
    model: str
    before: str
    """Its tier with the tiers in force; empty where they have none for it."""
    after: str
    """The same with the new tiers."""
    num_prompt_tokens: int
    num_output_tokens: int


class ForecastJob(msgspec.Struct, frozen=True):
    settings: EngineSettings
    profiles: dict[str, Profile]
    """By model."""
    before: tuple[TierSettings, ...]
    after: tuple[TierSettings, ...]
    requests: tuple[PastRequest, ...]
    """In order of arrival."""
    duration_s: float
    """Since the first of them, until now."""
    limit_s: float
    """Time that the simulation may take."""


class TierOutcome(msgspec.Struct, frozen=True):
    """What became of the requests that asked for a tier."""

    num_requests: int
    num_refused: int
    ttft_attainment: float | None
    """Of all requests of the tier; None without objectives."""
    tpot_attainment: float | None
    tokens_per_s: float
    """While requests arrived."""


class TierForecast(msgspec.Struct, frozen=True):
    tier: str
    before: TierOutcome | None
    """None where the tier is not among those in force."""
    after: TierOutcome | None
    """None where it is not among the new ones."""


class Forecast(msgspec.Struct, frozen=True):
    tiers: tuple[TierForecast, ...]
    num_arrivals: int
    """Fewer than were sent where the time did not suffice."""
    arrivals_s: float
