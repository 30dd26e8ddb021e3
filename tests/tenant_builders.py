"""Tenants with their tokens, and services that know them."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from service_builders import ScriptedEngine, make_config

from omniserve.config_listen import LimitsConfig
from omniserve.config_tenant import TenantConfig
from omniserve.metrics import Metrics
from omniserve.service import GenerationService


def token_of(tenant: str, number: int = 0) -> str:
    """Of the shape of real ones, and the same each time."""
    return "omni_" + (f"{tenant}-{number}-" * 43)[:43]


def hash_of_token(tenant: str, number: int = 0) -> str:
    return sha256(token_of(tenant, number).encode()).hexdigest()


def make_tenant(name: str, *, num_tokens: int = 1, **fields: Any) -> TenantConfig:
    """`fields` are as a file has them, those of the quota in one mapping, `quota`."""
    hashes = [hash_of_token(name, number) for number in range(num_tokens)]
    return TenantConfig.model_validate({"name": name, "token_sha256": hashes} | fields)


def bearer(tenant: str, number: int = 0) -> dict[str, str]:
    """Header or metadata."""
    return {"authorization": f"Bearer {token_of(tenant, number)}"}


def make_tenanted_service(
    checkpoint: Path,
    *tenants: TenantConfig,
    engine: ScriptedEngine | None = None,
    limits: LimitsConfig | None = None,
    clock: Callable[[], float] | None = None,
) -> GenerationService:
    """One model, `demo`; the tiers are interactive, voice and batch."""
    changes = {"tenants": tenants, "limits": limits or LimitsConfig()}
    config = make_config(checkpoint).model_copy(update=changes)
    options = {} if clock is None else {"clock": clock}
    return GenerationService(config, engine or ScriptedEngine(), Metrics(), **options)
