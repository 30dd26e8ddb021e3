"""Weights of tenants on their way: from the front to an engine, and into what it computes."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from engine_builders import GREEDY, make_engine, make_model_settings, make_request
from scripted_daemon import SCRIPT
from service_builders import until

from omniserve.engine_client import EngineClient
from omniserve.engine_supervision import EngineSupervision
from omniserve.requests import TierSettings
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings


@pytest.mark.asyncio
async def test_every_engine_is_told_the_shares_in_force() -> None:
    """The scripted engine shows in its statistics the shares that it knows."""
    settings = EngineSettings(DeviceSettings("cpu"), (ModelSettings("echo", "/echo"),))
    client = EngineClient(
        settings,
        EngineSupervision(command=(sys.executable, SCRIPT)),
        (TierSettings("batch", "best_effort"),),
        {"acme": 0.5},
    )

    def knows(*names: str) -> bool:
        stats = client.stats.get("echo")
        return stats is not None and tuple(stats.waiting) == ("batch", *names)

    try:
        await client.start()
        await until(lambda: knows("acme: 0.5"))
        client.set_shares({"acme": 2.0, "other": 1.0})
        await until(lambda: knows("acme: 2", "other: 1"))
        assert client.pid is not None
        psutil.Process(client.pid).kill()
        await until(lambda: client.num_restarts == 1 and client.ready)
        await until(lambda: knows("acme: 2", "other: 1"))
    finally:
        await client.stop(5.0)


def test_an_engine_computes_by_them(tiny_checkpoint: Path) -> None:
    engine = make_engine(make_model_settings(tiny_checkpoint, max_running_requests=1))
    engine.set_shares({"double": 2.0})
    for number in range(24):
        tenant = ("double", "single")[number % 2]
        prompt = tuple(range(5 + number, 15 + number))
        request = make_request(f"{tenant} {number}", prompt, GREEDY, "best_effort")
        engine.add(replace(request, tenant=tenant))
    num_done: Counter[str] = Counter()
    while num_done.total() < 12:
        ended = [each for each in engine.step() if each.finish_reason is not None]
        num_done.update(each.request_id.split()[0] for each in ended)
    assert num_done["double"] == pytest.approx(8, abs=1)
    engine.check_integrity()
    engine.close()
