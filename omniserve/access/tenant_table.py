"""The tenants in force, and whose token is whose."""

from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from omniserve.access.caller import Caller
from omniserve.config_tenant import TenantConfig
from omniserve.errors import Unauthenticated


class TenantTable:
    """Never changes: other tenants are another table."""

    def __init__(self, tenants: Sequence[TenantConfig]) -> None:
        self.tenants = tuple(tenants)
        self._callers = tuple(
            (bytes.fromhex(token_hash), caller)
            for tenant, caller in zip(tenants, map(_caller, tenants), strict=True)
            for token_hash in tenant.token_hashes
        )

    def caller(self, token: str) -> Caller:
        """The tenant that has this token; raises Unauthenticated."""
        given = sha256(token.encode()).digest()
        found = None
        # Always all of them: how long it takes tells nothing of how near a token is to one.
        for known, caller in self._callers:
            if compare_digest(known, given):
                found = caller
        if found is None:
            raise Unauthenticated("the token is not known")
        return found


def shares_of(tenants: Sequence[TenantConfig]) -> dict[str, float]:
    """Weights in best-effort service, by tenant, as the engine takes them."""
    return {tenant.name: tenant.quota.best_effort_share for tenant in tenants}


def _caller(tenant: TenantConfig) -> Caller:
    return Caller(
        tenant.name,
        is_known=True,
        tiers=None if tenant.tiers is None else frozenset(tenant.tiers),
        models=None if tenant.models is None else frozenset(tenant.models),
        default_tier=None if tenant.tiers is None else tenant.tiers[0],
        default_model=tenant.default_model,
    )
