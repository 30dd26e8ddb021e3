"""Who may use the daemon, and how much of it."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from omniserve.config_section import Section
from omniserve.config_values import Name, refuse

MAX_TENANTS = 1024
MAX_TOKENS_OF_TENANT = 16
_HASH = r"[0-9a-f]{64}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_number(value: object) -> object:
    if _is_number(value):
        raise refuse("must be in quotes: what has no letters is a number in YAML")
    return value


def _check_hash(value: str) -> str:
    if not re.fullmatch(_HASH, value):
        raise refuse("must be 64 hexadecimal digits, as omniserve token new prints them")
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) or _is_number(value) else value


_HASH_SCHEMA = {"type": "string", "pattern": f"^{_HASH}$"}
_HASHES_SCHEMA = {
    "type": "array",
    "items": _HASH_SCHEMA,
    "minItems": 1,
    "maxItems": MAX_TOKENS_OF_TENANT,
}
TokenHashes = Annotated[
    tuple[Annotated[str, BeforeValidator(_refuse_number), AfterValidator(_check_hash)], ...],
    Field(min_length=1, max_length=MAX_TOKENS_OF_TENANT, strict=False),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_HASH_SCHEMA, _HASHES_SCHEMA]}),
]
"""One SHA-256, or a list of them."""


class QuotaConfig(Section):
    """What one tenant may have at most; what is unset is not limited."""

    concurrent: int | None = Field(default=None, ge=1, le=1 << 20)
    """Sequences that are here at the same time, waiting ones included: every choice of every prompt
    is one."""
    queued: int | None = Field(default=None, ge=1, le=1 << 20)
    """Of those, sequences that have no token yet."""
    input_tokens_per_minute: int | None = Field(default=None, ge=1, le=1 << 40)
    """Prompt tokens; up to a minute's worth may come at once."""
    output_tokens_per_minute: int | None = Field(default=None, ge=1, le=1 << 40)
    """Generated tokens. A request is taken while some are left and charged for what it had."""
    best_effort_share: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """Weight of the tenant where best-effort service is shared: one with 2 gets twice as much as
    one with 1 while both have work waiting."""


class TenantConfig(Section):
    """One tenant: its tokens, and what it may use."""

    name: Name
    """As logs, metrics and explanations call it."""
    token_sha256: TokenHashes
    """SHA-256 of its bearer token in hexadecimal, from `omniserve token new`; several while a token
    is being replaced by another."""
    tiers: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)] | None = None
    """Tiers it may use; unset: all. The first is its default where it may not use the model's."""
    models: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)] | None = None
    """Models it may use; unset: all."""
    default_model: Name | None = None
    """Model of its requests that name none, nor a tier that has one."""
    quota: QuotaConfig = QuotaConfig()

    @property
    def token_hashes(self) -> tuple[str, ...]:
        return self.token_sha256


def check_tenants(
    tenants: Sequence[TenantConfig], models: Sequence[str], tiers: Sequence[str]
) -> None:
    """Raises PydanticCustomError where tenants contradict each other or the rest of the file."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, tenant in enumerate(tenants):
        path = ("tenants", index)
        if tenant.name in names:
            raise refuse("is the name of another tenant already", (*path, "name"))
        names.add(tenant.name)
        for token_hash in tenant.token_hashes:
            owner = owners.setdefault(token_hash, tenant.name)
            if owner != tenant.name:
                raise refuse(f"is a token of {owner} already", (*path, "token_sha256"))
        kinds: tuple[tuple[Literal["models", "tiers"], Sequence[str]], ...] = (
            ("models", models),
            ("tiers", tiers),
        )
        for key, known in kinds:
            for place, name in enumerate(getattr(tenant, key) or ()):
                if name not in known:
                    what = f"must name a {key[:-1]} of the file: {', '.join(known)}"
                    raise refuse(what, (*path, key, place))
