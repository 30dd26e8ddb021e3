"""How requests find a model: aliases, and the defaults of tiers and tenants."""

from collections.abc import Sequence
from typing import Protocol

from omniserve.config_file import KeyPath
from omniserve.config_tenant import TenantConfig
from omniserve.config_tier import TierConfig
from omniserve.config_values import refuse


class Named(Protocol):
    """A model as routes see it."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


def check_routes(
    models: Sequence[Named], tiers: Sequence[TierConfig], tenants: Sequence[TenantConfig]
) -> None:
    """Raises PydanticCustomError for a name of two models, and a default that is none."""
    owners = {model.name: model.name for model in models}
    for index, model in enumerate(models):
        for place, alias in enumerate(model.aliases):
            if alias in owners:
                path: KeyPath = ("models", index, "aliases", place)
                raise refuse(f"is a name of model {owners[alias]} already", path)
            owners[alias] = model.name
    for index, tier in enumerate(tiers):
        _check_default(tier.default_model, owners, ("tiers", index, "default_model"))
    for index, tenant in enumerate(tenants):
        path = ("tenants", index, "default_model")
        _check_default(tenant.default_model, owners, path)
        if tenant.default_model is None or tenant.models is None:
            continue
        if owners[tenant.default_model] not in tenant.models:
            raise refuse(f"must be one of the tenant's: {', '.join(tenant.models)}", path)


def _check_default(name: str | None, owners: dict[str, str], path: KeyPath) -> None:
    if name is not None and name not in owners:
        raise refuse(f"must name a model of the file: {', '.join(owners)}", path)
