"""The classes of service of a configuration: objectives, and the rules that go with them."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from omniserve.config_section import Section
from omniserve.config_values import Milliseconds, Name, refuse
from omniserve.requests import ServiceClassName, TierRules, TierSettings
from scheduler import Objectives

DEFAULT_PERCENTILE = 99.0
MAX_SLEEP_AFTER_S = 31_536_000.0
RESERVED_TIER_NAMES = ("auto", "default", "priority", "flex")
"""Values of OpenAI's `service_tier` that choose a tier by its role."""


class TierConfig(Section):
    """A named class of service."""

    name: Name
    """The name by which requests ask for the tier."""
    service_class: ServiceClassName = Field(alias="class")
    """latency_sensitive work goes first; best_effort takes what is left."""
    ttft_ms: Milliseconds | None = Field(default=None, validate_default=True)
    """Objective for the time to the first token (latency_sensitive only, required there)."""
    tpot_ms: Milliseconds | None = Field(default=None, validate_default=True)
    """Objective for the time per output token after the first (likewise)."""
    percentile: Annotated[float, Field(ge=50, lt=100)] | None = Field(
        default=None, validate_default=True
    )
    """Share of requests, in percent, that must meet the objectives (latency_sensitive only); 99."""

    admission: bool = True
    """Whether requests are taken only where their first token is predicted to come in time; others
    are refused at once, or go to the fallback (latency_sensitive only)."""
    fallback: Name | None = None
    """The best_effort tier of requests that would be late, and of those that demote_after_tokens
    sends on (latency_sensitive only)."""
    max_waiting: int | None = Field(default=None, ge=1, le=1 << 20)
    """Most requests of the tier that wait for one model; others are refused. Unset: any number."""
    default_model: Name | None = None
    """Model of requests that name this tier and no model."""
    demote_after_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    """Output tokens after which a request goes on as best_effort (latency_sensitive only)."""
    sleep_after_s: Annotated[float, Field(gt=0, le=MAX_SLEEP_AFTER_S)] | None = None
    """A model may go to sleep so long after its last request of this tier; unset: a model that had
    one stays awake."""

    @property
    def objectives(self) -> Objectives | None:
        """As the policy takes them; None of a best_effort tier."""
        if self.ttft_ms is None or self.tpot_ms is None or self.percentile is None:
            return None
        return Objectives(self.ttft_ms / 1e3, self.tpot_ms / 1e3, self.percentile / 100)

    @property
    def settings(self) -> TierSettings:
        """As the engine takes it."""
        rules = TierRules(self.admission, self.fallback, self.max_waiting, self.demote_after_tokens)
        return TierSettings(self.name, self.service_class, self.objectives, rules)

    @model_serializer(mode="wrap")
    def _without_admission(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of a best_effort tier, where it says nothing."""
        shown: dict[str, Any] = serialize(self)
        if self.service_class == "best_effort":
            shown.pop("admission", None)
        return shown

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED_TIER_NAMES:
            raise refuse(f"must not be one of {', '.join(RESERVED_TIER_NAMES)}, which are reserved")
        return value

    @field_validator("ttft_ms", "tpot_ms", "percentile")
    @classmethod
    def _objective(cls, value: float | None, info: ValidationInfo) -> float | None:
        service_class = info.data.get("service_class")
        if service_class == "best_effort" and value is not None:
            raise refuse("is not allowed for a best_effort tier, which has no objectives")
        if service_class == "latency_sensitive" and value is None:
            if info.field_name == "percentile":
                return DEFAULT_PERCENTILE
            raise refuse("is required for a latency_sensitive tier: a positive number")
        return value

    @field_validator("admission")
    @classmethod
    def _admission(cls, value: bool, info: ValidationInfo) -> bool:
        if info.data.get("service_class") == "best_effort" and not value:
            raise refuse("is not allowed for a best_effort tier, whose requests are never late")
        return value

    @field_validator("fallback", "demote_after_tokens")
    @classmethod
    def _way_down(cls, value: str | int | None, info: ValidationInfo) -> str | int | None:
        if info.data.get("service_class") == "best_effort" and value is not None:
            raise refuse("is not allowed for a best_effort tier, below which there is none")
        return value


def check_tiers(tiers: Sequence[TierConfig]) -> None:
    """Raises where a fallback is no best_effort tier among these."""
    names = [tier.name for tier in tiers if tier.service_class == "best_effort"]
    for index, tier in enumerate(tiers):
        if tier.fallback is not None and tier.fallback not in names:
            allowed = ", ".join(names) if names else "there is none"
            text = f"must name a best_effort tier: {allowed}"
            raise refuse(text, ("tiers", index, "fallback"))
