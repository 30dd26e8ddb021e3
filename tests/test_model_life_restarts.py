"""What becomes of models where the engine is started again."""

import asyncio
from pathlib import Path

import pytest
from model_builders import Gate, HeldLoads, ModelSite
from service_builders import complete, make_generation_request, until

from omniserve.errors import (
    ConfigError,
    EngineUnavailable,
    ModelUnavailable,
    UnknownModel,
)
from omniserve.model_life.entries import WantedEntry


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


@pytest.mark.asyncio
async def test_an_engine_that_is_being_started_again_is_asked_until_it_forgets_the_model(
    site: ModelSite,
) -> None:
    site.engine.ready = False
    unload = asyncio.create_task(site.models.unload("demo", 0.0, force=False))
    await until(lambda: site.states() == {"demo": "draining"})
    await asyncio.sleep(0.01)
    assert site.states() == {"demo": "draining"}
    site.engine.ready = True
    assert (await unload).state == "serving"
    assert site.engine.unloaded == ["demo"]


@pytest.mark.asyncio
async def test_a_new_engine_serves_the_file_while_it_loads_what_came_at_run_time(
    site: ModelSite,
) -> None:
    for name in ("guest", "other"):
        await site.models.load(WantedEntry(site.text(name, aliases=[f"{name}-alias"])))
    site.models.pin("guest", True)
    held = site.engine.load_script = HeldLoads()
    site.restart_engine()
    assert site.states() == {"demo": "serving", "guest": "loading", "other": "loading"}
    await until(lambda: bool(held.begun))
    await complete(site.service, make_generation_request())
    for name in ("guest", "guest-alias", "other"):
        with pytest.raises(ModelUnavailable, match=f"'{name}' is being loaded"):
            await complete(site.service, make_generation_request(model=name))
    held.release.set()
    await until(lambda: set(site.states().values()) == {"serving"})
    assert held.begun == ["guest", "other"]
    assert [each.is_pinned for each in site.service.roster] == [False, True, False]
    for name in ("guest", "other-alias"):
        await complete(site.service, make_generation_request(model=name))


@pytest.mark.asyncio
async def test_a_model_that_a_new_engine_cannot_load_has_failed_and_may_be_loaded_again(
    site: ModelSite, caplog: pytest.LogCaptureFixture
) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    held = site.engine.load_script = HeldLoads(ConfigError("the memory does not suffice"))
    held.release.set()
    site.restart_engine()
    await until(lambda: site.states()["guest"] == "failed")
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == [
        "model_lost"
    ]
    with pytest.raises(UnknownModel):
        await complete(site.service, make_generation_request(model="guest"))
    # The next engine is not asked for it.
    site.restart_engine()
    assert site.states() == {"demo": "serving", "guest": "failed"}
    held.error = None
    await site.models.load(WantedEntry(site.text("guest")))
    await complete(site.service, make_generation_request(model="guest"))


@pytest.mark.asyncio
@pytest.mark.parametrize("num_deaths", [2, 3])
async def test_where_the_engine_dies_once_more_the_next_one_is_asked_but_not_for_ever(
    site: ModelSite, num_deaths: int
) -> None:
    for name in ("guest", "other"):
        await site.models.load(WantedEntry(site.text(name)))
    held = site.engine.load_script = HeldLoads(EngineUnavailable("the engine was lost"))
    site.restart_engine()
    for asked in (["guest"] * (number + 1) for number in range(num_deaths)):
        while held.begun != asked:
            await asyncio.sleep(0.01)
        # It dies, and another one is there later.
        site.engine.ready = False
        held.release.set()
        await asyncio.sleep(0.01)
        assert held.begun == asked
        held.release.clear()
        site.restart_engine()
        site.engine.ready = True
    held.error = None
    held.release.set()
    await until(lambda: "loading" not in site.states().values())
    guest = site.service.roster.get("guest")
    assert guest is not None and site.states()["other"] == "serving"
    if num_deaths == 2:
        assert guest.state == "serving"
    else:
        assert guest.error == "the engine died 3 times while it was being loaded"


@pytest.mark.asyncio
async def test_what_is_unloaded_while_it_is_loaded_again_does_not_come_back(
    site: ModelSite,
) -> None:
    for name in ("guest", "other"):
        await site.models.load(WantedEntry(site.text(name)))
    held = site.engine.load_script = HeldLoads()
    site.restart_engine()
    await until(lambda: bool(held.begun))
    # One that waits for its turn, and one that the engine is asked for already.
    for name in ("other", "guest"):
        assert (await site.models.unload(name, None, force=False)).state == "loading"
    assert site.engine.cancelled_loads == held.begun == ["guest"]
    site.restart_engine()
    assert site.states() == {"demo": "serving"}


@pytest.mark.asyncio
async def test_a_model_that_was_being_drained_is_not_loaded_again(site: ModelSite) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    gate = site.engine.script = Gate()
    running = asyncio.create_task(
        complete(site.service, make_generation_request(model="guest")), name="running"
    )
    await until(lambda: bool(site.engine.started))
    unload = asyncio.create_task(site.models.unload("guest", 60.0, force=False))
    await until(lambda: site.states()["guest"] == "draining")
    site.restart_engine()
    assert site.states()["guest"] == "draining"
    gate.is_open.set()
    await asyncio.gather(running, unload)
    assert site.states() == {"demo": "serving"}
