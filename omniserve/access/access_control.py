"""Who may call now, and what each of them has left."""

import time
from collections.abc import Callable, Sequence

from omniserve.access.bearer_token import bearer_token
from omniserve.access.caller import ANYONE, Caller
from omniserve.access.quotas import QuotaLedger
from omniserve.access.tenant_table import TenantTable
from omniserve.config_tenant import TenantConfig


class AccessControl:
    """Of one daemon. Whether there are tenants at all is settled when it starts."""

    def __init__(
        self, tenants: Sequence[TenantConfig], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = TenantTable(tenants)
        self.quotas = QuotaLedger(tenants, clock)

    @property
    def tenants(self) -> tuple[TenantConfig, ...]:
        """Those in force."""
        return self._table.tenants

    @property
    def is_open(self) -> bool:
        """Whether everyone who can connect may call."""
        return not self._table.tenants

    def caller(self, authorization: Sequence[str]) -> Caller:
        """Whoever sent these values of `authorization`; raises Unauthenticated.

        Without tenants they are not looked at: clients of OpenAI send a key wherever they call.
        """
        if self.is_open:
            return ANYONE
        return self._table.caller(bearer_token(authorization))

    def set_tenants(self, tenants: Sequence[TenantConfig]) -> None:
        """From now on these may call; requests that are here go on and keep what they took."""
        assert bool(tenants) != self.is_open, "whether there are tenants is settled at the start"
        self._table = TenantTable(tenants)
        self.quotas.set_tenants(tenants)
