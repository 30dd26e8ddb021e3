"""One difference between the configuration in force and the file."""

from collections.abc import Mapping
from dataclasses import dataclass

import yaml


@dataclass(frozen=True, slots=True)
class TierChange:
    """Of a tier, or of a tenant; values are as a file has them."""

    tier: str
    """Empty where the order of the tiers changed, and of tenants."""
    key: str
    """Empty where the tier is new or gone; of tenants the path, `tenants.NAME.quota.queued`."""
    before: str
    """Empty where there was none."""
    after: str


def shown(value: object) -> str:
    """One value as a file has it; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def shown_keys(keys: Mapping[str, object]) -> str:
    """Keys and values as one line of YAML."""
    line = yaml.safe_dump(dict(keys), default_flow_style=True, sort_keys=False, width=10_000)
    return str(line).strip()
