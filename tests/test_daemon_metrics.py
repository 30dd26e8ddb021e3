"""What a scraper sees of the daemon itself."""

from pathlib import Path

import pytest
from api_servers import serving
from prometheus_client import CollectorRegistry, generate_latest
from service_builders import make_service, sample

from omniserve import __version__
from omniserve.daemon_metrics import DaemonMetrics, EngineCondition
from omniserve.v1 import omniserve_pb2 as pb


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in series}


def test_the_version_is_a_label() -> None:
    registry = CollectorRegistry()
    DaemonMetrics(registry)
    (build,) = [name for name in scraped(registry) if name.startswith("omniserve_build_info")]
    assert f'version="{__version__}"' in build


def test_a_refused_reload_keeps_the_time_of_the_one_in_force() -> None:
    now_s = 1000.0
    registry = CollectorRegistry()
    metrics = DaemonMetrics(registry, lambda: now_s)
    prefix = "omniserve_config_last_reload"

    def shown() -> tuple[float, float]:
        found = scraped(registry)
        return found[f"{prefix}_successful"], found[f"{prefix}_timestamp_seconds"]

    assert shown() == (1, 1000)
    now_s = 2000.0
    metrics.note_reload(is_accepted=False)
    assert shown() == (0, 1000)
    metrics.note_reload(is_accepted=True)
    assert shown() == (1, 2000)


def test_supervision_is_asked_at_every_scrape() -> None:
    registry = CollectorRegistry()
    condition = EngineCondition(is_up=True, is_accepting=False, num_restarts=3)
    DaemonMetrics(registry).watch_supervision(lambda: condition)
    found = scraped(registry)
    assert found["omniserve_engine_up"] == 1
    assert found["omniserve_accepting_requests"] == 0
    assert found["omniserve_engine_restarts_total"] == 3
    condition = EngineCondition(is_up=False, is_accepting=False, num_restarts=4)
    assert scraped(registry)["omniserve_engine_up"] == 0


@pytest.mark.asyncio
async def test_a_scrape_tells_of_a_file_that_was_refused(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    name = "omniserve_config_last_reload_successful"
    async with serving(service) as servers:
        assert sample(service.metrics, name, [""]) == 1
        await servers.admin.ReloadTiers(pb.ReloadTiersRequest())
        assert sample(service.metrics, name, [""]) == 0


def test_a_scrape_tells_whether_requests_are_accepted(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    assert sample(service.metrics, "omniserve_accepting_requests", [""]) == 1
    service.draining = True
    assert sample(service.metrics, "omniserve_accepting_requests", [""]) == 0
    assert sample(service.metrics, "omniserve_engine_up", [""]) == 1
