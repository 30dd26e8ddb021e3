"""Models of a changed file: loaded, removed, changed in place, or left for a restart."""

import asyncio
from pathlib import Path

import pytest
from model_builders import HeldLoads, ModelSite
from service_builders import complete, make_generation_request, until

from omniserve.errors import ConfigError
from omniserve.model_life.entries import WantedEntry
from omniserve.reload.change_text import change_text
from omniserve.reload.reloader import Reload

FOLLOWS = "models are loaded and unloaded from now on; the status tells how far that is"


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


def texts(reload: Reload) -> list[str]:
    return [change_text(each.tier, each.key, each.before, each.after) for each in reload.changes]


@pytest.mark.asyncio
async def test_new_models_are_loaded_and_others_go_after_their_requests(site: ModelSite) -> None:
    taken = await site.reload(site.demo, site.entry("late", dtype="float32"))
    assert texts(taken) == [f"models.late: - -> {{path: {site.checkpoint}, dtype: float32}}"]
    assert taken.notes == (FOLLOWS,)
    assert site.states() == {"demo": "serving", "late": "loading"}
    await until(lambda: site.states() == {"demo": "serving", "late": "serving"})
    await complete(site.service, make_generation_request(model="late"))
    taken = await site.reload(site.entry("late", dtype="float32"))
    assert texts(taken) == [f"models.demo: {{path: {site.checkpoint}}} -> -"]
    await until(lambda: site.states() == {"late": "serving"})
    assert site.engine.unloaded == ["demo"]
    assert (await site.reload(site.entry("late", dtype="float32"))) == Reload()


@pytest.mark.asyncio
async def test_a_dry_run_says_it_and_does_nothing(site: ModelSite) -> None:
    site.write(site.entry("late"))
    found = (await site.reloader.dry_run()).reload
    assert texts(found) == [
        f"models.late: - -> {{path: {site.checkpoint}}}",
        f"models.demo: {{path: {site.checkpoint}}} -> -",
    ]
    assert found.notes == ()
    assert site.states() == {"demo": "serving"}
    assert site.engine.unloaded == []


@pytest.mark.asyncio
async def test_what_routes_requests_changes_in_place_and_the_rest_needs_a_restart(
    site: ModelSite,
) -> None:
    changed = site.demo | {
        "aliases": ["gpt"],
        "default_tier": "batch",
        "pinned": True,
        "block_size": 16,
        "piggyback": {"enabled": False},
    }
    taken = await site.reload(changed)
    assert texts(taken) == [
        "models.demo.aliases: - -> gpt",
        "models.demo.default_tier: - -> batch",
        "models.demo.pinned: false -> true",
    ]
    assert taken.needs_restart[:2] == ("models.demo.block_size", "models.demo.piggyback.enabled")
    await complete(site.service, make_generation_request(model="gpt"))
    assert site.engine.started[-1].tier == "batch"
    standing = site.service.roster.get("demo")
    assert standing is not None and standing.is_pinned
    # What needs a restart does so until then; what is in force is no change any more.
    again = await site.reload(changed)
    assert (texts(again), again.needs_restart) == ([], taken.needs_restart)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"path": "/nowhere"}, "model 'late': /nowhere: no such directory"),
        ({"aliases": ["guest"]}, "models.late.aliases: 'guest' is a name of model 'guest' already"),
        ({"step_times": "/nowhere"}, "models.late.step_times = '/nowhere': cannot be read"),
        ({"default_tier": "nowhere"}, "must name a tier"),
    ],
)
async def test_a_file_whose_new_model_is_wrong_changes_nothing(
    site: ModelSite, keys: dict[str, object], problem: str
) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    tiers = [{"name": "only", "class": "best_effort"}]
    late = site.entry("late") | keys
    refused = await site.reload(site.demo | {"aliases": ["gpt"]}, late, tiers=tiers)
    assert problem in refused.error
    assert site.reloader.last_error == refused.error
    assert site.states() == {"demo": "serving", "guest": "serving"}
    assert [tier.name for tier in site.service.tiers.tiers] == ["interactive", "voice", "batch"]
    assert site.service.models.aliases("demo") == ()


@pytest.mark.asyncio
async def test_a_load_that_fails_afterwards_is_told_by_the_next_reload_and_tried_again(
    site: ModelSite,
) -> None:
    held = site.engine.load_script = HeldLoads(ConfigError("no room"))
    held.release.set()
    assert (await site.reload(site.demo, site.entry("late"))).is_accepted
    await until(lambda: site.states().get("late") == "failed")
    held.error = None
    taken = await site.reload(site.demo, site.entry("late"))
    assert taken.notes == ("model 'late' failed before: no room", FOLLOWS)
    await until(lambda: site.states().get("late") == "serving")
    held.error = ConfigError("no room")
    await site.reload(site.demo, site.entry("late"), site.entry("other"))
    await until(lambda: site.states().get("other") == "failed")
    await site.reload(site.demo, site.entry("late"))
    assert site.states() == {"demo": "serving", "late": "serving"}


@pytest.mark.asyncio
async def test_while_an_engine_is_started_again_what_the_file_says_waits(site: ModelSite) -> None:
    site.engine.ready, site.engine.state = False, "restarting"
    assert (await site.reload(site.demo, site.entry("late"))).is_accepted
    await asyncio.sleep(0.05)
    assert site.states()["late"] == "loading"
    site.engine.ready = True
    await until(lambda: site.states()["late"] == "serving")


@pytest.mark.asyncio
async def test_models_of_operators_stay_until_the_file_has_them(site: ModelSite) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    assert await site.reload(site.demo) == Reload()
    assert await site.reload(site.demo, site.entry("guest")) == Reload()
    # Now it is the file's.
    await site.reload(site.demo)
    await until(lambda: site.states() == {"demo": "serving"})


@pytest.mark.asyncio
async def test_a_model_that_an_operator_pinned_stays(site: ModelSite) -> None:
    await site.reload(site.demo, site.entry("late", pinned=True))
    await until(lambda: site.states().get("late") == "serving")
    site.models.pin("demo", True)
    taken = await site.reload(site.entry("other"))
    assert taken.notes[0] == "model 'demo' is not in the file; it is pinned, and stays"
    # The file's own pin goes with its entry.
    await until(lambda: site.states() == {"demo": "serving", "other": "serving"})


@pytest.mark.asyncio
async def test_a_model_that_loads_is_given_up_where_the_file_has_it_no_more(
    site: ModelSite,
) -> None:
    held = site.engine.load_script = HeldLoads()
    await site.reload(site.demo, site.entry("late"))
    await until(lambda: held.begun == ["late"])
    await site.reload(site.demo | {"aliases": ["gpt"]})
    await until(lambda: site.states() == {"demo": "serving"})
    assert site.engine.cancelled_loads == ["late"]


@pytest.mark.asyncio
async def test_a_model_that_is_being_unloaded_cannot_come_back_yet(site: ModelSite) -> None:
    lease = site.service.model_requests.enter("demo")
    await site.reload(site.entry("late"))
    await until(lambda: site.states() == {"demo": "draining", "late": "loading"})
    refused = await site.reload(site.demo, site.entry("late"))
    assert "model 'demo' is being unloaded, and the file has it; reload again" in refused.error
    # What takes memory waits for what gives some back.
    assert [model.name for model in site.engine.settings.models] == ["demo"]
    lease.close()
    await until(lambda: site.states() == {"late": "serving"})
    assert (await site.reload(site.demo, site.entry("late"))).is_accepted
    await until(lambda: site.states() == {"demo": "serving", "late": "serving"})
    assert [each.name for each in site.service.roster] == ["demo", "late"]
    assert list(site.service.models.models) == ["demo", "late"]


@pytest.mark.asyncio
async def test_a_load_waits_for_what_is_given_up_to_be_gone(site: ModelSite) -> None:
    is_gone, begun = asyncio.Event(), asyncio.Event()

    async def end_slowly(*_: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await is_gone.wait()

    site.engine.load_script = end_slowly
    await site.reload(site.demo, site.entry("late"))
    await begun.wait()
    site.engine.load_script = None
    await site.reload(site.demo, site.entry("other"))
    # At once: no file that is read now takes it for a model that stays.
    assert site.states() == {"demo": "serving", "late": "draining", "other": "loading"}
    refused = await site.reload(site.demo, site.entry("late"), site.entry("other"))
    assert "model 'late' is being unloaded" in refused.error
    await asyncio.sleep(0.05)
    assert site.states()["other"] == "loading"
    is_gone.set()
    await until(lambda: site.states() == {"demo": "serving", "other": "serving"})


@pytest.mark.asyncio
async def test_a_load_waits_for_what_an_operator_unloads(site: ModelSite) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    lease = site.service.model_requests.enter("guest")
    unload = asyncio.create_task(site.models.unload("guest", 60.0, force=False))
    await until(lambda: site.states()["guest"] == "draining")
    await site.reload(site.demo, site.entry("late"))
    await asyncio.sleep(0.05)
    assert site.states() == {"demo": "serving", "guest": "draining", "late": "loading"}
    assert "late" not in [model.name for model in site.engine.settings.models]
    lease.close()
    await unload
    await until(lambda: site.states() == {"demo": "serving", "late": "serving"})
