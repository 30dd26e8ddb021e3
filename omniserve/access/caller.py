"""Whoever sent a request, once its token has been looked at."""

from dataclasses import dataclass, replace
from typing import Self

from omniserve.access.bearer_token import without_tokens
from omniserve.errors import PermissionDenied

_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """As the rest of the front sees it; quotas are kept by name."""

    tenant: str = ""
    """Of the token; without tenants in the configuration, whatever the client says."""
    is_known: bool = False
    """Whether a token proved it. Quotas are kept of these alone."""
    tiers: frozenset[str] | None = None
    """It may use; None: all."""
    models: frozenset[str] | None = None
    """It may use; None: all."""
    default_tier: str | None = None
    """Where the model's own default is not among `tiers`."""

    default_model: str | None = None
    """Name or alias of what a request means that names no model."""

    def may_use_model(self, name: str) -> bool:
        return self.models is None or name in self.models

    def may_use_tier(self, name: str) -> bool:
        return self.tiers is None or name in self.tiers

    def claiming(self, tenant: str) -> Self:
        """The caller of a request that names its tenant itself; empty where it names none.

        Raises PermissionDenied where a token proves it to be another one.
        """
        if not tenant or tenant == self.tenant:
            return self
        if self.is_known:
            # Who takes the one header for the other sends a token here.
            shown = repr(without_tokens(tenant)[:_SHOWN_CHARS])
            raise PermissionDenied(
                f"tenant: {shown} is not the tenant of the token; leave it out or name "
                f"{self.tenant!r}"
            )
        return replace(self, tenant=tenant)


ANYONE = Caller()
