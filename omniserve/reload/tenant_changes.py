"""What differs between tenants; of tokens, only how many there are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omniserve.config_tenant import TenantConfig
from omniserve.reload.tier_change import TierChange, shown, shown_keys


def tenant_changes(
    before: Sequence[TenantConfig], after: Sequence[TenantConfig]
) -> Iterator[TierChange]:
    """Nothing where one of both is empty: whether there are tenants is settled at the start."""
    if not before or not after:
        return
    old, new = ({tenant.name: tenant for tenant in each} for each in (before, after))
    for name in dict.fromkeys((*old, *new)):
        path, was, is_now = f"tenants.{name}", old.get(name), new.get(name)
        if was is None or is_now is None:
            yield TierChange("", path, _whole(was), _whole(is_now))
            continue
        yield from _changed_tokens(path, was, is_now)
        keys, keys_now = _keys(was), _keys(is_now)
        for key in dict.fromkeys((*keys, *keys_now)):
            if keys.get(key) != keys_now.get(key):
                yield TierChange(
                    "", f"{path}.{key}", shown(keys.get(key)), shown(keys_now.get(key))
                )


def _changed_tokens(path: str, was: TenantConfig, is_now: TenantConfig) -> Iterator[TierChange]:
    old, new = set(was.token_hashes), set(is_now.token_hashes)
    if old != new:
        after = f"{len(new)}, {len(new - old)} of them new"
        yield TierChange("", f"{path}.token_sha256", str(len(old)), after)


def _keys(tenant: TenantConfig) -> Mapping[str, Any]:
    """What a tenant may use and have, with the keys of its quota as `quota.key`."""
    data = tenant.model_dump(mode="json", exclude={"name", "token_sha256"}, exclude_none=True)
    quota = data.pop("quota")
    return data | {f"quota.{key}": value for key, value in quota.items()}


def _whole(tenant: TenantConfig | None) -> str:
    return "" if tenant is None else shown_keys(_keys(tenant))
