"""Models that are loaded beside requests that run."""

import asyncio
from pathlib import Path

import pytest
from model_builders import HeldLoads, ModelSite
from service_builders import complete, make_generation_request, sample, until

from omniserve.errors import (
    CheckpointError,
    ConfigError,
    EngineUnavailable,
    LoadCancelled,
    ModelExists,
    ModelUnavailable,
    OmniServeError,
    UnknownModel,
)
from omniserve.model_life.entries import WantedEntry, WantedName
from omniserve.model_life.standing import LoadProgress


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


@pytest.mark.asyncio
async def test_a_loaded_model_answers_by_its_names_and_with_its_default_tier(
    site: ModelSite,
) -> None:
    with pytest.raises(UnknownModel, match="model 'guest' is not served; served: demo"):
        await complete(site.service, make_generation_request(model="guest"))
    info = await site.models.load(
        WantedEntry(site.text("guest", aliases=["visitor"], default_tier="batch"))
    )
    assert info.name == "guest"
    assert site.states() == {"demo": "serving", "guest": "serving"}
    for name in ("guest", "visitor"):
        await complete(site.service, make_generation_request(model=name))
    assert [(each.model, each.tier) for each in site.engine.started] == [("guest", "batch")] * 2
    # Its series are there before it has served anything in a tier.
    labels = ('model="guest"', 'tier="voice"', 'outcome="ok"')
    assert sample(site.service.metrics, "omniserve_requests_total", labels) == 0


@pytest.mark.asyncio
async def test_a_model_of_the_file_is_loaded_by_its_name(site: ModelSite) -> None:
    site.write(site.demo, site.entry("later", dtype="float32"))
    await site.models.load(WantedName("later"))
    assert site.engine.settings.models[-1].dtype == "float32"
    with pytest.raises(UnknownModel, match="'nowhere' is not in the configuration file"):
        await site.models.load(WantedName("nowhere"))


@pytest.mark.asyncio
async def test_while_a_model_loads_others_serve_and_its_requests_are_told_to_come_again(
    site: ModelSite,
) -> None:
    held = site.engine.load_script = HeldLoads()
    seen: list[LoadProgress] = []
    load = asyncio.create_task(site.models.load(WantedEntry(site.text("guest")), seen.append))
    await until(lambda: bool(held.begun))
    await complete(site.service, make_generation_request())
    with pytest.raises(ModelUnavailable, match="model 'guest' is being loaded") as refused:
        await complete(site.service, make_generation_request(model="guest"))
    assert refused.value.retry_after_s > 0
    assert list(site.service.models.allowed(make_generation_request().caller)) == ["demo"]
    assert seen == [LoadProgress("checking"), LoadProgress("reading", 30, 120)]
    held.release.set()
    await load
    await complete(site.service, make_generation_request(model="guest"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        ("demo", {}, "name: 'demo' is a name of model 'demo' already"),
        ("guest", {}, "name: 'guest' is a name of model 'guest' already"),
        ("new", {"aliases": ["visitor"]}, "aliases: 'visitor' is a name of model 'guest'"),
        ("visitor", {}, "name: 'visitor' is a name of model 'guest'"),
    ],
)
async def test_names_that_are_taken_are_refused_also_by_a_model_that_only_loads(
    site: ModelSite, name: str, keys: dict[str, object], problem: str
) -> None:
    held = site.engine.load_script = HeldLoads()
    first = WantedEntry(site.text("guest", aliases=["visitor"]))
    load = asyncio.create_task(site.models.load(first))
    await until(lambda: bool(held.begun))
    with pytest.raises(ModelExists, match=problem):
        await site.models.load(WantedEntry(site.text(name, **keys)))
    held.release.set()
    await load


@pytest.mark.asyncio
async def test_of_two_loads_of_one_name_at_once_one_is_refused(site: ModelSite) -> None:
    wanted = WantedEntry(site.text("guest"))
    results = await asyncio.gather(
        *(site.models.load(wanted) for _ in range(4)), return_exceptions=True
    )
    refused = [each for each in results if isinstance(each, ModelExists)]
    assert len(refused) == 3
    assert site.states()["guest"] == "serving"


@pytest.mark.asyncio
async def test_several_models_load_one_after_the_other(site: ModelSite) -> None:
    held = site.engine.load_script = HeldLoads()
    loads = [
        asyncio.create_task(site.models.load(WantedEntry(site.text(name))))
        for name in ("first", "second")
    ]
    # Their entries are read in threads: either may be the first.
    await until(lambda: len(site.states()) == 3 and bool(held.begun))
    (begun,) = held.begun
    (other,) = {"first", "second"} - {begun}
    waiting = site.service.roster.get(other)
    assert waiting is not None
    assert (waiting.state, waiting.progress) == ("loading", LoadProgress("waiting"))
    held.release.set()
    await asyncio.gather(*loads)
    assert held.begun == [begun, other]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("entry", "kind", "problem"),
    [
        ("", ConfigError, "the file is empty"),
        ("- {name: x}", ConfigError, "must be a mapping"),
        ("{name: x}", ConfigError, "the required key 'path' is missing"),
        ("{name: x, path: y, what: 1}", ConfigError, "unknown key 'what'"),
        ("a: &a [1, 1]\nb: [*a, *a]", ConfigError, "aliases (*name) are not allowed"),
        ("[" * 1000, ConfigError, "nested more than"),
        ("name: x\npath: \x00", ConfigError, "not a YAML file"),
        (f"{{name: {'x' * 200_000}, path: y}}", ConfigError, "must be 1 to 128 letters"),
        ("x" * (10 << 20), ConfigError, "is larger than 256 KiB"),
        ("{name: x, path: y, default_tier: nowhere}", ConfigError, "must name a tier: inter"),
        ("{name: x, path: y, aliases: [x]}", ConfigError, "each must be another name"),
        ("{name: x, path: /nowhere/at/all}", CheckpointError, "no such directory"),
        ("{name: x, path: /dev/null}", CheckpointError, "not a directory"),
        ("{name: x, path: .}", CheckpointError, "config.json is missing"),
        ("{name: x, path: y, step_times: /nowhere}", ConfigError, "step_times = '/nowhere'"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_before_the_engine_is_asked(
    site: ModelSite, entry: str, kind: type[OmniServeError], problem: str
) -> None:
    with pytest.raises(kind) as refused:
        await site.models.load(WantedEntry(entry))
    assert problem in str(refused.value)
    assert len(str(refused.value)) < 5000
    assert [model.name for model in site.engine.settings.models] == ["demo"]
    assert site.states() in ({"demo": "serving"}, {"demo": "serving", "x": "failed"})
    await complete(site.service, make_generation_request())


@pytest.mark.asyncio
async def test_a_failed_load_is_remembered_and_frees_its_names(site: ModelSite) -> None:
    held = site.engine.load_script = HeldLoads(ConfigError("device_kv_bytes: give less"))
    held.release.set()
    with pytest.raises(ConfigError, match="give less"):
        await site.models.load(WantedEntry(site.text("guest", aliases=["visitor"])))
    failed = site.service.roster.get("guest")
    assert failed is not None
    assert (failed.state, failed.error) == ("failed", "device_kv_bytes: give less")
    with pytest.raises(UnknownModel):
        await complete(site.service, make_generation_request(model="visitor"))
    held.error = None
    await site.models.load(WantedEntry(site.text("visitor")))
    await site.models.load(WantedEntry(site.text("guest")))
    assert site.states() == {"demo": "serving", "guest": "serving", "visitor": "serving"}


@pytest.mark.asyncio
async def test_no_more_than_a_few_failures_are_remembered(site: ModelSite) -> None:
    for number in range(20):
        with pytest.raises(CheckpointError):
            await site.models.load(WantedEntry(f"{{name: x{number}, path: /nowhere}}"))
    failed = [name for name, state in site.states().items() if state == "failed"]
    assert failed == [f"x{number}" for number in range(4, 20)]


@pytest.mark.asyncio
async def test_who_asked_may_go_and_nothing_is_left_of_the_load(site: ModelSite) -> None:
    held = site.engine.load_script = HeldLoads()
    load = asyncio.create_task(site.models.load(WantedEntry(site.text("guest"))))
    await until(lambda: bool(held.begun))
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert site.engine.cancelled_loads == ["guest"]
    assert site.states() == {"demo": "serving"}
    metrics = site.service.metrics
    assert sample(metrics, "omniserve_model_loads_total", ('outcome="cancelled"',)) == 1
    held.release.set()
    await site.models.load(WantedEntry(site.text("guest")))


@pytest.mark.asyncio
async def test_unloading_a_model_that_loads_gives_it_up(site: ModelSite) -> None:
    held = site.engine.load_script = HeldLoads()
    load = asyncio.create_task(site.models.load(WantedEntry(site.text("guest"))))
    await until(lambda: bool(held.begun))
    assert (await site.models.unload("guest", None, force=False)).state == "loading"
    with pytest.raises(LoadCancelled, match="'guest' was given up"):
        await load
    assert site.states() == {"demo": "serving"}


@pytest.mark.asyncio
async def test_a_daemon_that_stops_takes_no_models_and_gives_up_what_is_under_way(
    site: ModelSite,
) -> None:
    held = site.engine.load_script = HeldLoads()
    load = asyncio.create_task(site.models.load(WantedEntry(site.text("guest"))))
    await until(lambda: bool(held.begun))
    site.service.draining = True
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await site.models.load(WantedEntry(site.text("other")))
    await site.models.close()
    with pytest.raises(LoadCancelled):
        await load
    assert site.engine.cancelled_loads == ["guest"]


@pytest.mark.asyncio
async def test_models_are_counted(site: ModelSite) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    with pytest.raises(CheckpointError):
        await site.models.load(WantedEntry("{name: x, path: /nowhere}"))
    await site.models.unload("demo", 0.0, force=False)
    metrics = site.service.metrics
    for name, labels, value in (
        ("omniserve_models", ('state="serving"',), 1),
        ("omniserve_models", ('state="failed"',), 1),
        ("omniserve_models", ('state="loading"',), 0),
        ("omniserve_model_loads_total", ('outcome="loaded"',), 1),
        ("omniserve_model_loads_total", ('outcome="failed"',), 1),
        ("omniserve_model_load_seconds_count", ("",), 1),
        ("omniserve_model_unloads_total", ("",), 1),
    ):
        assert sample(metrics, name, labels) == value, name
