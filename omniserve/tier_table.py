"""The tiers in force: which one a request means, and what the engine is told of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from omniserve.config import ModelConfig
from omniserve.config_tier import TierConfig
from omniserve.errors import InvalidRequest, ReloadRefused
from omniserve.requests import TierSettings

_CLASS_OF_ROLE = {"priority": "latency_sensitive", "flex": "best_effort"}


class TierTable:
    """Never changes: other tiers are another table."""

    def __init__(self, tiers: Sequence[TierConfig], models: Sequence[ModelConfig]) -> None:
        """Raises ReloadRefused where the default tier of a model is not among the tiers."""
        self.tiers = tuple(tiers)
        self._by_name = {tier.name: tier for tier in tiers}
        self._models = tuple(models)
        self._default_by_model: dict[str, TierConfig] = {}
        for model in models:
            default = self._by_name.get(model.default_tier or self.tiers[0].name)
            if default is None:
                raise ReloadRefused(
                    f"tier {model.default_tier!r} must stay while the daemon runs: "
                    f"model {model.name!r} has it as its default_tier"
                )
            self._default_by_model[model.name] = default

    def with_tiers(self, tiers: Sequence[TierConfig]) -> Self:
        """Other tiers for the same models; raises ReloadRefused as the constructor does."""
        return type(self)(tiers, self._models)

    def default(self, model: str) -> TierConfig:
        """The tier of a request for this served model that names none."""
        return self._default_by_model[model]

    def resolve(self, model: str, name: str | None) -> TierConfig:
        """The tier that a request for this served model means; raises InvalidRequest."""
        if name in (None, "", "auto", "default"):
            return self.default(model)
        assert name is not None
        if name in _CLASS_OF_ROLE:
            wanted = _CLASS_OF_ROLE[name]
            found = next((tier for tier in self.tiers if tier.service_class == wanted), None)
        else:
            found = self._by_name.get(name)
        if found is None:
            classes = {tier.service_class for tier in self.tiers}
            roles = [role for role, wanted in _CLASS_OF_ROLE.items() if wanted in classes]
            allowed = ", ".join([*self._by_name, "auto", "default", *roles])
            raise InvalidRequest(f"tier: {name[:64]!r} is not served; allowed: {allowed}", "tier")
        return found

    @property
    def all_settings(self) -> tuple[TierSettings, ...]:
        """Of all tiers, as the engine takes them."""
        return tuple(map(self.settings, self.tiers))

    def settings(self, tier: TierConfig) -> TierSettings:
        """As the engine takes it, with what it has to know of the fallback."""
        settings = tier.settings
        if tier.fallback is None:
            return settings
        most = self._by_name[tier.fallback].max_waiting
        return replace(settings, rules=replace(settings.rules, fallback_max_waiting=most))
