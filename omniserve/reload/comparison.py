"""What differs between two configurations, and what of it can be taken over without a restart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniserve.config import Config
from omniserve.config_tenant import TenantConfig
from omniserve.config_tier import TierConfig
from omniserve.reload.model_changes import ModelPlan
from omniserve.reload.tenant_changes import tenant_changes
from omniserve.reload.tier_change import TierChange, shown, shown_keys


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a file with what is in force."""

    changes: tuple[TierChange, ...]
    needs_restart: tuple[str, ...]
    """Key paths; models are called by their names."""
    notes: tuple[str, ...] = ()
    """What is to be known besides."""


def compare(
    started: Config,
    tiers: Sequence[TierConfig],
    tenants: Sequence[TenantConfig],
    found: Config,
    models: ModelPlan,
) -> Comparison:
    """What a daemon that was started with one configuration, and has these tiers and tenants in
    force, could take over of another one, which means `models`, and what it could not."""
    return Comparison(
        (
            *_tier_changes(tiers, found.tiers),
            *tenant_changes(tenants, found.tenants),
            *models.changes,
        ),
        tuple(dict.fromkeys(_restart_keys(started, found, models))),
        models.notes,
    )


def _tier_changes(
    before: Sequence[TierConfig], after: Sequence[TierConfig]
) -> Iterable[TierChange]:
    old, new = {tier.name: tier for tier in before}, {tier.name: tier for tier in after}
    for name, tier in old.items():
        if name not in new:
            yield TierChange(name, "", shown_keys(_keys(tier)), "")
            continue
        was, is_now = _keys(tier), _keys(new[name])
        for key in dict.fromkeys((*was, *is_now)):
            if was.get(key) != is_now.get(key):
                yield TierChange(name, key, shown(was.get(key)), shown(is_now.get(key)))
    for name, tier in new.items():
        if name not in old:
            yield TierChange(name, "", "", shown_keys(_keys(tier)))
    # The first tier is the default of models that name none, the first of a class has its role.
    orders = [[name for name in names if name in old and name in new] for names in (old, new)]
    if orders[0] != orders[1]:
        yield TierChange("", "tiers", *(", ".join(order) for order in orders))


def _keys(tier: TierConfig) -> dict[str, Any]:
    return tier.model_dump(mode="json", exclude={"name"}, exclude_none=True)


def _restart_keys(started: Config, found: Config, models: ModelPlan) -> Iterable[str]:
    rest = {"tiers", "models", "tenants"}
    yield from _differences(
        started.model_dump(mode="json", exclude=rest), found.model_dump(mode="json", exclude=rest)
    )
    yield from models.needs_restart
    if bool(started.tenants) != bool(found.tenants):
        # Who may listen where depends on it.
        yield "tenants"
    # What the tiers decide besides: without a best_effort tier nothing is piggybacked.
    with_tiers = started.model_copy(update={"tiers": found.tiers})
    before, after = started.piggybacking(), with_tiers.piggybacking()
    kept = {model.name for model in models.kept}
    for name in before:
        if name in kept and type(before[name]) is not type(after[name]):
            yield f"models.{name}.piggyback"


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterable[str]:
    for key in dict.fromkeys((*before, *after)):
        was, is_now = before.get(key), after.get(key)
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from _differences(was, is_now, f"{prefix}{key}.")
        elif was != is_now:
            yield prefix + key
