"""Models that are loaded, drained, unloaded and pinned beside requests that run."""

import asyncio
import math
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from model_builders import HeldLoads, ModelSite
from service_builders import complete, make_generation_request, make_output, sample, until

from omniserve.errors import (
    CheckpointError,
    ConfigError,
    EngineUnavailable,
    InvalidRequest,
    LoadCancelled,
    ModelBusy,
    ModelExists,
    ModelUnavailable,
    OmniServeError,
    UnknownModel,
)
from omniserve.model_life.entries import WantedEntry, WantedName
from omniserve.model_life.standing import LoadProgress
from omniserve.requests import EngineRequest, RequestOutput


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


class Gate:
    """A script of the engine: one token, and the others when it is opened."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def __call__(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        num_tokens = request.sampling.max_tokens or 1
        for place in range(num_tokens):
            if place:
                await self.is_open.wait()
            yield make_output(request, place, num_tokens)


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
async def test_requests_end_before_their_model_goes_and_new_ones_are_told(site: ModelSite) -> None:
    gate = site.engine.script = Gate()
    running = asyncio.create_task(complete(site.service, make_generation_request()))
    await until(lambda: bool(site.engine.started))
    unload = asyncio.create_task(site.models.unload("demo", 60.0, force=False))
    await until(lambda: site.states() == {"demo": "draining"})
    with pytest.raises(ModelUnavailable, match="'demo' is being unloaded") as refused:
        await complete(site.service, make_generation_request())
    # By then it is gone for good, and says so.
    assert 50 < refused.value.retry_after_s <= 60
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
