"""Models that are drained, unloaded and pinned beside requests that run."""

import asyncio
import math
from pathlib import Path

import pytest
from model_builders import Gate, ModelSite
from service_builders import complete, make_generation_request, until

from omniserve.errors import (
    EngineUnavailable,
    InvalidRequest,
    ModelBusy,
    ModelExists,
    ModelUnavailable,
    UnknownModel,
)
from omniserve.model_life.entries import WantedEntry, WantedName


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


@pytest.mark.asyncio
async def test_requests_end_before_their_model_goes_and_new_ones_are_told(site: ModelSite) -> None:
    gate = site.engine.script = Gate()
    running = asyncio.create_task(complete(site.service, make_generation_request()))
    await until(lambda: bool(site.engine.started))
    unload = asyncio.create_task(site.models.unload("demo", 600.0, force=False))
    await until(lambda: site.states() == {"demo": "draining"})
    with pytest.raises(ModelUnavailable, match="'demo' is being unloaded") as refused:
        await complete(site.service, make_generation_request())
    # By then it is gone for good, and says so.
    assert 500 < refused.value.retry_after_s <= 600
    for again in (
        site.models.unload("demo", 0.0, force=True),
        site.models.load(WantedName("demo")),
    ):
        with pytest.raises((ModelBusy, ModelExists)):
            await again
    assert site.engine.unloaded == []
    gate.is_open.set()
    assert len((await running).choices[0].token_ids) == 5
    done = await unload
    assert (done.state, done.num_finished, done.num_ended) == ("serving", 1, 0)
    assert site.engine.unloaded == ["demo"]
    with pytest.raises(UnknownModel, match="model 'demo' is not served; served: none"):
        await complete(site.service, make_generation_request())
    await site.models.load(WantedName("demo"))
    await complete(site.service, make_generation_request())


@pytest.mark.asyncio
async def test_requests_that_do_not_end_in_time_are_cut_off(site: ModelSite) -> None:
    gate = site.engine.script = Gate()
    running = [
        asyncio.create_task(complete(site.service, make_generation_request(n=2))) for _ in range(3)
    ]
    await until(lambda: len(site.engine.started) == 6)
    done = await site.models.unload("demo", 0.0, force=False)
    assert (done.num_finished, done.num_ended) == (0, 3)
    for each in running:
        with pytest.raises(EngineUnavailable, match="'demo' was unloaded before the request"):
            await each
    assert not gate.is_open.is_set()
    assert site.engine.running == set()
    assert site.service.model_requests.count("demo") == 0


@pytest.mark.asyncio
async def test_a_request_that_is_still_read_when_its_model_goes_never_reaches_the_engine(
    site: ModelSite,
) -> None:
    stream = await site.service.start(make_generation_request())
    unload = asyncio.create_task(site.models.unload("demo", 0.0, force=False))
    await until(lambda: site.states() == {})
    with pytest.raises(EngineUnavailable, match="was unloaded"):
        async with stream:
            await stream.result()
    assert site.engine.started == []
    assert (await unload).num_ended == 1


@pytest.mark.asyncio
async def test_an_unload_goes_on_when_nobody_waits_for_it(site: ModelSite) -> None:
    gate = site.engine.script = Gate()
    running = asyncio.create_task(complete(site.service, make_generation_request()))
    await until(lambda: bool(site.engine.started))
    unload = asyncio.create_task(site.models.unload("demo", 60.0, force=False))
    await until(lambda: site.states() == {"demo": "draining"})
    unload.cancel()
    gate.is_open.set()
    await running
    await until(lambda: site.states() == {})


@pytest.mark.asyncio
async def test_a_pinned_model_is_unloaded_by_force_alone(site: ModelSite) -> None:
    site.models.pin("demo", True)
    with pytest.raises(ModelBusy, match="'demo' is pinned; unpin it first"):
        await site.models.unload("demo", 0.0, force=False)
    assert site.states() == {"demo": "serving"}
    site.models.pin("demo", False)
    await site.models.load(WantedEntry(site.text("guest", pinned=True)))
    with pytest.raises(ModelBusy):
        await site.models.unload("guest", 0.0, force=False)
    await site.models.unload("guest", 0.0, force=True)
    await site.models.unload("demo", 0.0, force=False)
    assert site.states() == {}


@pytest.mark.asyncio
@pytest.mark.parametrize("drain_s", [-1.0, math.nan, math.inf, -math.inf, 86_401.0])
async def test_a_time_to_drain_that_is_none_is_refused(site: ModelSite, drain_s: float) -> None:
    with pytest.raises(InvalidRequest, match="drain_s: .* is not allowed; allowed: 0 to 86400"):
        await site.models.unload("demo", drain_s, force=True)
    assert site.states() == {"demo": "serving"}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["", "nowhere", "x" * (10 << 20), "\x00\ud800"])
async def test_models_that_nobody_knows_are_not_found(site: ModelSite, name: str) -> None:
    for ask in (
        lambda: site.models.unload(name, None, force=True),
        lambda: asyncio.to_thread(site.models.pin, name, True),
    ):
        with pytest.raises(UnknownModel, match="is not loaded; there: demo") as refused:
            await ask()
        assert len(str(refused.value)) < 1000


@pytest.mark.asyncio
async def test_defaults_fall_back_where_their_model_is_gone(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    site = ModelSite(tmp_path, tiny_checkpoint)
    tiers = [{"name": "batch", "class": "best_effort", "default_model": "guest"}]
    await site.reload(site.demo, site.entry("guest"), tiers=tiers)
    await until(lambda: site.states() == {"demo": "serving", "guest": "serving"})
    request = make_generation_request(model="", tier="batch")
    await complete(site.service, request)
    await site.models.unload("guest", 0.0, force=False)
    with pytest.raises(UnknownModel, match="'guest', the default of tier or tenant, is not served"):
        await complete(site.service, request)
    assert site.engine.started[-1].model == "guest"
