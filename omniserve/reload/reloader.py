"""Reads the daemon's configuration file again and takes over its tiers, tenants and models."""

import asyncio
import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from omniserve.access.tenant_table import shares_of
from omniserve.config import Config, load_config
from omniserve.config_tenant import TenantConfig
from omniserve.errors import OmniServeError, ReloadRefused
from omniserve.logs import get_logger, log_event
from omniserve.model_life.loads import Load, read_front_part
from omniserve.model_life.manager import ModelManager
from omniserve.model_table import ModelTable
from omniserve.reload.change_text import change_text
from omniserve.reload.comparison import Comparison, compare
from omniserve.reload.forecaster import Forecasted, Forecaster, NoForecast, SimulatedEngine
from omniserve.reload.model_changes import ModelPlan, plan_models
from omniserve.reload.model_takeover import ModelTakeover
from omniserve.reload.tier_change import TierChange
from omniserve.requests import TierSettings
from omniserve.served_model import ServedModel
from omniserve.service import GenerationService
from omniserve.tier_table import TierTable
from omniserve.tls import Tls, TlsMaterial

_logger = get_logger(__name__)

_FOLLOWS = "models are loaded and unloaded from now on; the status tells how far that is"


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
    notes: tuple[str, ...] = ()

    @property
    def is_accepted(self) -> bool:
        return not self.error


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a reload would change, and what that would have made of what arrived lately."""

    reload: Reload
    forecast: Forecasted | NoForecast


@dataclass(frozen=True, slots=True)
class _Files:
    """What was read."""

    config: Config
    tls: TlsMaterial | None
    parts: Mapping[str, ServedModel]
    """Of models that are not loaded yet."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What it means for what is in force at this moment."""

    config: Config
    tiers: TierTable
    table: ModelTable
    models: ModelPlan
    loads: tuple[Load, ...]
    comparison: Comparison
    tls: TlsMaterial | None

    @property
    def result(self) -> Reload:
        found = self.comparison
        return Reload("", found.changes, found.needs_restart, found.notes)


class Reloader:
    """Of one daemon. Made inside a running event loop."""

    def __init__(
        self,
        path: Path,
        config: Config,
        service: GenerationService,
        engine: ReloadedEngine,
        models: ModelManager,
        tls: Tls | None = None,
    ) -> None:
        """`config` is what `path` said when the daemon started."""
        self._path = path
        self._started = config
        self._service = service
        self._engine = engine
        self._tls = tls
        self._takeover = ModelTakeover(service, models)
        self._forecaster = Forecaster(service.arrivals, engine)
        self._turn = asyncio.Lock()
        self.last_error = ""
        """Of the last reading that was to be taken over; empty where it was."""

    async def reload(self) -> Reload:
        """Takes over the whole file; nothing, where anything in it is wrong.

        Models that are new or gone are loaded and unloaded after the return; what can be found
        wrong with them without that was looked for before.
        """
        # One after the other: the file that was read last is the one in force.
        async with self._turn:
            try:
                found = self._candidate(await self._read())
            except OmniServeError as error:
                self.last_error = str(error)
                self._service.metrics.daemon.note_reload(is_accepted=False)
                return _refused(error)
            # No await between these: no request sees the one without the other.
            self._service.set_served(found.tiers.tiers, found.table)
            self._engine.set_tiers(found.tiers.all_settings)
            if self._tls is not None and found.tls is not None:
                self._tls.put(found.tls)
            self._set_tenants(found.config.tenants)
            self._takeover.carry_out(found.models, found.loads)
            self.last_error = ""
            self._service.metrics.daemon.note_reload(is_accepted=True)
        _log_taken(found.comparison)
        if found.loads or found.models.removals:
            return replace(found.result, notes=(*found.result.notes, _FOLLOWS))
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
            found = self._candidate(await self._read())
        except OmniServeError as error:
            return DryRun(Reload(str(error)), NoForecast("the file is refused"))
        forecast = await self._forecaster.compare(self._service.tiers, found.tiers)
        return DryRun(found.result, forecast)

    async def _read(self) -> _Files:
        """Raises ConfigError, CheckpointError or ReloadRefused."""
        try:
            # In a thread: streams go on meanwhile.
            known = {each.name for each in self._service.roster.present}
            return await asyncio.to_thread(self._read_now, known)
        except OmniServeError:
            raise
        except Exception as error:
            log_event(_logger, "reload_failed", level=logging.ERROR, error=error)
            name = type(error).__name__
            raise ReloadRefused(f"{self._path}: reading it failed: {name}") from error

    def _read_now(self, known: Set[str]) -> _Files:
        """`known` are the models that there are."""
        config = load_config(self._path)
        threads = self._service.text_threads
        parts = {
            model.name: read_front_part(model, threads)
            for model in config.models
            if model.name not in known
        }
        return _Files(config, None if self._tls is None else self._tls.read(), parts)

    def _candidate(self, files: _Files) -> _Candidate:
        """Raises ConfigError, ModelExists or ReloadRefused."""
        service, config = self._service, files.config
        models = plan_models(service.roster, config.models)
        # Also of models that are being loaded, which requests do not find yet.
        TierTable(config.tiers, (*models.kept, *models.others, *models.loads))
        table = self._takeover.table(models)
        comparison = compare(
            self._started, service.tiers.tiers, service.access.tenants, config, models
        )
        return _Candidate(
            config,
            TierTable(config.tiers, table.configs),
            table,
            models,
            self._takeover.loads(models, config.tiers, files.parts),
            comparison,
            files.tls,
        )


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
