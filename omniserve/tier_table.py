"""The tiers in force: which one a request means, and what the engine is told of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from omniserve.access.bearer_token import without_tokens
from omniserve.access.caller import ANYONE, Caller
from omniserve.config import ModelConfig
from omniserve.config_tier import TierConfig
from omniserve.errors import InvalidRequest, PermissionDenied, ReloadRefused
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
                    f"tier {model.default_tier!r} must stay: model {model.name!r}, which is "
                    "served, has it as its default_tier"
                )
            self._default_by_model[model.name] = default

    def with_tiers(self, tiers: Sequence[TierConfig]) -> Self:
        """Other tiers for the same models; raises ReloadRefused as the constructor does."""
        return type(self)(tiers, self._models)

    def with_models(self, models: Sequence[ModelConfig]) -> Self:
        """The same tiers for other models; raises ReloadRefused as the constructor does."""
        return type(self)(self.tiers, models)

    def allowed(self, caller: Caller) -> tuple[TierConfig, ...]:
        """Those that the caller may use, in order."""
        return tuple(tier for tier in self.tiers if caller.may_use_tier(tier.name))

    def default(self, model: str, caller: Caller = ANYONE) -> TierConfig:
        """The tier of a request for this model that names none; raises PermissionDenied."""
        # Requests of an hour ago may be of a model that is gone.
        default = self._default_by_model.get(model, self.tiers[0])
        if caller.may_use_tier(default.name):
            return default
        # Tiers may have changed since the caller was let in.
        allowed = self.allowed(caller)
        if not allowed:
            raise PermissionDenied(f"tier: tenant {caller.tenant!r} may use none of those served")
        return next((tier for tier in allowed if tier.name == caller.default_tier), allowed[0])

    def default_model(self, name: str | None) -> str | None:
        """The model of a request that names this tier and no model."""
        tier = self._by_name.get(name or "")
        return None if tier is None else tier.default_model

    def resolve(self, model: str, name: str | None, caller: Caller = ANYONE) -> TierConfig:
        """The tier that a request for this served model means.

        Raises InvalidRequest, and PermissionDenied for one that the caller may not use.
        """
        if name in (None, "", "auto", "default"):
            return self.default(model, caller)
        assert name is not None
        if name in _CLASS_OF_ROLE:
            wanted = _CLASS_OF_ROLE[name]
            found = next(
                (tier for tier in self.allowed(caller) if tier.service_class == wanted), None
            )
        else:
            found = self._by_name.get(name)
        if found is not None and caller.may_use_tier(found.name):
            return found
        names = _names(self.allowed(caller))
        if found is None:
            shown = repr(without_tokens(name)[:64])
            raise InvalidRequest(f"tier: {shown} is not served; allowed: {names}", "tier")
        raise PermissionDenied(
            f"tier: {found.name!r} is not for tenant {caller.tenant!r}; allowed: {names}"
        )

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


def _names(tiers: Sequence[TierConfig]) -> str:
    """All by which a request may ask for one of these."""
    classes = {tier.service_class for tier in tiers}
    roles = [role for role, wanted in _CLASS_OF_ROLE.items() if wanted in classes]
    return ", ".join([*(tier.name for tier in tiers), "auto", "default", *roles])
