"""Reads the daemon's configuration file again and takes over its tiers and tenants."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omniserve.access.tenant_table import shares_of
from omniserve.config import Config, load_config
from omniserve.config_tenant import TenantConfig
from omniserve.errors import OmniServeError, ReloadRefused
from omniserve.logs import get_logger, log_event
from omniserve.reload.change_text import change_text
from omniserve.reload.comparison import Comparison, compare
from omniserve.reload.forecaster import Forecasted, Forecaster, NoForecast, SimulatedEngine
from omniserve.reload.tier_change import TierChange
from omniserve.requests import TierSettings
from omniserve.service import GenerationService
from omniserve.tier_table import TierTable
from omniserve.tls import Tls, TlsMaterial

_logger = get_logger(__name__)


class ReloadedEngine(SimulatedEngine, Protocol):
    """What a reload needs of the engine's client."""

    def set_tiers(self, tiers: tuple[TierSettings, ...]) -> None: ...
    def set_shares(self, shares: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Reload:
    """What became of one reading of the file."""

    error: str = ""
    """Why it is not in force, a line for each problem; empty where it is."""
    changes: tuple[TierChange, ...] = ()
    needs_restart: tuple[str, ...] = ()

    @property
    def is_accepted(self) -> bool:
        return not self.error


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a reload would change, and what that would have made of what arrived lately."""

    reload: Reload
    forecast: Forecasted | NoForecast


@dataclass(frozen=True, slots=True)
class _Candidate:
    tiers: TierTable
    tenants: tuple[TenantConfig, ...]
    comparison: Comparison
    tls: TlsMaterial | None

    @property
    def result(self) -> Reload:
        return Reload("", self.comparison.changes, self.comparison.needs_restart)


class Reloader:
    """Of one daemon. Made inside a running event loop."""

    def __init__(
        self,
        path: Path,
        config: Config,
        service: GenerationService,
        engine: ReloadedEngine,
        tls: Tls | None = None,
    ) -> None:
        """`config` is what `path` said when the daemon started."""
        self._path = path
        self._started = config
        self._service = service
        self._engine = engine
        self._tls = tls
        self._forecaster = Forecaster(service.arrivals, engine)
        self._turn = asyncio.Lock()
        self.last_error = ""
        """Of the last reading that was to be taken over; empty where it was."""

    async def reload(self) -> Reload:
        """Takes over all tiers and tenants of the file; nothing, where anything in it is wrong."""
        # One after the other: the file that was read last is the one in force.
        async with self._turn:
            try:
                found = await self._read()
            except OmniServeError as error:
                self.last_error = str(error)
                self._service.metrics.daemon.note_reload(is_accepted=False)
                return _refused(error)
            # No await between these: no request sees the one without the other.
            self._service.set_tiers(found.tiers.tiers)
            self._engine.set_tiers(found.tiers.all_settings)
            if self._tls is not None and found.tls is not None:
                self._tls.put(found.tls)
            self._set_tenants(found.tenants)
            self.last_error = ""
            self._service.metrics.daemon.note_reload(is_accepted=True)
        _log_taken(found.comparison)
        return found.result

    def _set_tenants(self, tenants: tuple[TenantConfig, ...]) -> None:
        access = self._service.access
        if bool(tenants) == access.is_open:
            # The comparison says that this needs a restart.
            return
        access.set_tenants(tenants)
        self._engine.set_shares(shares_of(tenants))

    async def dry_run(self) -> DryRun:
        """Changes nothing."""
        try:
            found = await self._read()
        except OmniServeError as error:
            return DryRun(Reload(str(error)), NoForecast("the file is refused"))
        forecast = await self._forecaster.compare(self._service.tiers, found.tiers)
        return DryRun(found.result, forecast)

    async def _read(self) -> _Candidate:
        """Raises ConfigError or ReloadRefused."""
        try:
            # In a thread: streams go on meanwhile.
            return await asyncio.to_thread(
                self._read_now, self._service.tiers, self._service.access.tenants
            )
        except OmniServeError:
            raise
        except Exception as error:
            log_event(_logger, "reload_failed", level=logging.ERROR, error=error)
            name = type(error).__name__
            raise ReloadRefused(f"{self._path}: reading it failed: {name}") from error

    def _read_now(self, tiers: TierTable, tenants: tuple[TenantConfig, ...]) -> _Candidate:
        config = load_config(self._path)
        comparison = compare(self._started, tiers.tiers, tenants, config)
        tls = None if self._tls is None else self._tls.read()
        return _Candidate(tiers.with_tiers(config.tiers), config.tenants, comparison, tls)


def _refused(error: OmniServeError) -> Reload:
    log_event(_logger, "reload_refused", level=logging.WARNING, reason=str(error))
    return Reload(str(error))


def _log_taken(comparison: Comparison) -> None:
    shown = "; ".join(
        change_text(each.tier, each.key, each.before, each.after) for each in comparison.changes
    )
    log_event(_logger, "tiers_reloaded", changes=shown or "none")
    if comparison.needs_restart:
        keys = ", ".join(comparison.needs_restart)
        log_event(_logger, "restart_needed", level=logging.WARNING, keys=keys)
