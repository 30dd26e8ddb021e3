"""The front over an engine in this process: open to everyone, or to two tenants alone."""

import asyncio
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from api_servers import make_manager, make_reloader
from service_builders import ScriptedEngine, make_config

from fuzz.defects import PLANTED_TOKEN, check
from fuzz.sane_engine import make_engine
from omniserve.config import Config
from omniserve.config_listen import LimitsConfig
from omniserve.config_tenant import QuotaConfig, TenantConfig
from omniserve.metrics import Metrics
from omniserve.model_life.manager import ModelManager
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.status.reporter import StatusReporter

OTHER_TOKEN = "omni_" + "o" * 43
TENANTS = (
    TenantConfig(name="planted", token_sha256=(sha256(PLANTED_TOKEN.encode()).hexdigest(),)),
    TenantConfig(
        name="bound",
        token_sha256=(sha256(OTHER_TOKEN.encode()).hexdigest(),),
        tiers=("batch",),
        quota=QuotaConfig(concurrent=3, queued=2, output_tokens_per_minute=10**9),
    ),
)
AUTHORIZATIONS = (
    *(f"Bearer {PLANTED_TOKEN}", f"bearer  {PLANTED_TOKEN} ", f"Bearer {OTHER_TOKEN}"),
    *(f"Bearer {PLANTED_TOKEN[:-1]}", PLANTED_TOKEN, f"Basic {PLANTED_TOKEN}", "Bearer", ""),
)
LIMITS = LimitsConfig(max_output_tokens=100, max_prompt_tokens=200)


@dataclass(frozen=True, slots=True)
class Front:
    service: GenerationService
    engine: ScriptedEngine
    reloader: Reloader
    models: ModelManager
    reporter: StatusReporter

    def check_idle(self) -> None:
        """Whatever the case was, nothing of it may be left."""
        check(not self.engine.running, "the engine still runs")
        check(len(asyncio.all_tasks()) == 1, "a task was left behind")
        for tenant in self.service.access.quotas.tenants_status():
            check(not tenant.num_concurrent and not tenant.num_queued, "a quota was not given back")
        self.engine.started.clear()


def make_fronts(checkpoint: Path) -> tuple[Front, Front]:
    """Without tenants, and with them."""
    config = make_config(checkpoint).model_copy(update={"limits": LIMITS})
    return _front(config), _front(config.model_copy(update={"tenants": TENANTS}))


def _front(config: Config) -> Front:
    engine = make_engine()
    service = GenerationService(config, engine, Metrics())
    reloader = make_reloader(service, Path("not-there.yaml"))
    models = make_manager(service, Path("not-there.yaml"))
    return Front(service, engine, reloader, models, StatusReporter(service, reloader))
