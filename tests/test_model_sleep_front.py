"""Models that fall asleep when nobody needs them and wake when somebody does, in the front."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest
from model_builders import Gate, HeldLoads, ModelSite
from pydantic import ValidationError
from service_builders import complete, make_generation_request, sample, until

from omniserve.config_tier import TierConfig
from omniserve.errors import (
    CheckpointError,
    ConfigError,
    DeadlineExceeded,
    EngineUnavailable,
    ModelBusy,
    ModelExists,
    ModelUnavailable,
    Overloaded,
    UnknownModel,
)
from omniserve.generation import GenerationRequest
from omniserve.model_life.entries import WantedEntry, WantedName
from omniserve.model_life.idle import due_s
from omniserve.model_life.standing import LoadProgress
from omniserve.model_life.wake_forecast import WakeForecast, left_s

INTERACTIVE = {"name": "interactive", "class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100}
BATCH = {"name": "batch", "class": "best_effort"}


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(site: ModelSite, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(site.service, "_clock", clock)
    monkeypatch.setattr(site.service.model_requests, "_clock", clock)
    monkeypatch.setattr(site.models.idle, "_ready_since_s", clock())
    return clock


def request_of(tier: str = "batch", request_id: str = "r", **keys: object) -> GenerationRequest:
    request = make_generation_request(tier=tier, request_id=request_id)
    return replace(request, **keys)  # type: ignore[arg-type]


def hold_wakes(site: ModelSite, error: Exception | None = None) -> HeldLoads:
    site.engine.load_script = held = HeldLoads(error)
    return held


async def events_of(site: ModelSite, request_id: str = "r") -> dict[str, str]:
    return {each.event: each.detail for each in await site.service.explain(request_id)}


# By hand


@pytest.mark.asyncio
async def test_a_request_wakes_its_model_and_waits_for_it(site: ModelSite) -> None:
    await site.models.sleep("demo")
    assert site.states() == {"demo": "asleep"} and site.engine.asleep == {"demo"}
    # Whoever looks finds it served, and its tokenizer at hand.
    assert site.service.model_info("demo").name == "demo"
    assert list(site.service.models.models) == ["demo"]
    assert await site.service.texts.tokenize("demo", "hello")
    held = hold_wakes(site)
    request = asyncio.create_task(complete(site.service, request_of()))
    await until(lambda: bool(held.begun))
    standing = site.service.roster.get("demo")
    assert standing is not None and standing.progress == LoadProgress("reading", 30, 120)
    assert site.states() == {"demo": "waking"} and not site.engine.started
    assert site.service.wake_queue is not None
    assert site.service.wake_queue.num_waiting("demo", "batch") == 1
    held.release.set()
    assert len((await request).choices[0].token_ids) == 5
    assert site.states() == {"demo": "serving"} and held.begun == ["demo"]
    assert site.service.wake_queue.num_waiting("demo", "batch") == 0
    events = await events_of(site)
    assert events["model asleep"].startswith("it is expected to wake in 0.0 s")
    assert events["model awake"].startswith("the model was asleep; woke in ")
    # The next one knows nothing of it.
    await complete(site.service, request_of(request_id="next"))
    assert not {"model asleep", "model awake"} & set(await events_of(site, "next"))


@pytest.mark.asyncio
async def test_sleeps_and_wakes_are_told_once_and_counted(
    site: ModelSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await asyncio.gather(*(site.models.sleep("demo") for _ in range(3)))
    assert await asyncio.gather(*(site.models.wake("demo") for _ in range(3)))
    assert await site.models.wake("demo") == 0.0
    events = [each.getMessage() for each in caplog.records]
    assert [each for each in events if each.startswith("model_")] == [
        *("model_asleep", "model_waking", "model_awake")
    ]
    metrics = site.service.metrics
    assert sample(metrics, "omniserve_model_sleeps_total", ("",)) == 1
    assert sample(metrics, "omniserve_model_wakes_total", ('outcome="awake"',)) == 1
    assert sample(metrics, "omniserve_model_wake_seconds_count", ("",)) == 1
    assert sample(metrics, "omniserve_models", ('state="asleep"',)) == 0


@pytest.mark.asyncio
async def test_a_model_with_requests_is_not_put_to_sleep(site: ModelSite) -> None:
    gate = site.engine.script = Gate()
    running = asyncio.create_task(complete(site.service, request_of()))
    await until(lambda: bool(site.engine.started))
    with pytest.raises(ModelBusy, match="'demo' has requests, 1 now; it sleeps without any"):
        await site.models.sleep("demo")
    gate.is_open.set()
    await running
    await site.models.sleep("demo")


@pytest.mark.asyncio
async def test_operators_may_call_a_model_by_an_alias(site: ModelSite) -> None:
    assert (await site.reload({**site.demo, "aliases": ["other"]})).is_accepted
    await site.models.sleep("other")
    assert site.states() == {"demo": "asleep"} and site.engine.asleep == {"demo"}
    await site.models.wake("other")
    site.models.pin("other", True)
    await site.models.unload("other", 0.0, force=True)
    assert site.states() == {}


@pytest.mark.asyncio
async def test_what_is_not_there_neither_sleeps_nor_wakes(site: ModelSite) -> None:
    for name in ("", "nowhere", "x" * (1 << 20), "\x00\ud800"):
        for ask in (site.models.sleep, site.models.wake):
            with pytest.raises(UnknownModel, match="is not loaded; there: demo"):
                await ask(name)
    held = hold_wakes(site)
    load = asyncio.create_task(site.models.load(WantedEntry(site.text("guest"))))
    await until(lambda: bool(held.begun))
    for ask in (site.models.sleep, site.models.wake):
        with pytest.raises(ModelBusy, match="'guest' is loading"):
            await ask("guest")
    held.release.set()
    await load
    site.engine.ready = False
    with pytest.raises(EngineUnavailable):
        await site.models.sleep("guest")
    assert site.states() == {"demo": "serving", "guest": "serving"}


@pytest.mark.asyncio
async def test_who_waits_for_a_wake_may_go_and_the_wake_goes_on(site: ModelSite) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site)
    request = asyncio.create_task(complete(site.service, request_of()))
    operator = asyncio.create_task(site.models.wake("demo"))
    await until(lambda: bool(held.begun))
    for task in (request, operator):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert site.service.model_requests.count("demo") == 0
    held.release.set()
    await until(lambda: site.states() == {"demo": "serving"})
    assert not site.engine.started


@pytest.mark.asyncio
async def test_a_request_that_comes_while_its_model_falls_asleep_wakes_it(site: ModelSite) -> None:
    standing = site.service.roster.get("demo")
    assert standing is not None
    falling = asyncio.create_task(site.models.sleep("demo"))
    await asyncio.sleep(0)
    request = asyncio.create_task(complete(site.service, request_of()))
    assert len((await request).choices[0].token_ids) == 5
    assert falling.done() and site.states() == {"demo": "serving"}


@pytest.mark.asyncio
async def test_an_engine_that_cannot_be_asked_leaves_the_model_awake(site: ModelSite) -> None:
    falling = asyncio.create_task(site.models.sleep("demo"))
    await asyncio.sleep(0)
    site.engine.ready = False
    with pytest.raises(EngineUnavailable):
        await falling
    assert site.states() == {"demo": "serving"}
    site.engine.ready = True
    await complete(site.service, request_of())


# What requests are told


@pytest.mark.asyncio
async def test_a_request_that_cannot_be_in_time_is_refused_and_the_next_one_served(
    site: ModelSite, clock: Clock
) -> None:
    def urgent() -> GenerationRequest:
        return request_of("interactive", arrival_s=clock())

    site.engine.load_s = 12.5
    await site.models.sleep("demo")
    held = hold_wakes(site)
    with pytest.raises(Overloaded, match=r"is asleep; it is being woken, which takes 12\.5 s") as e:
        await complete(site.service, urgent())
    assert e.value.retry_after_s == 12.5
    best_effort = asyncio.create_task(complete(site.service, request_of()))
    await until(lambda: bool(held.begun))
    clock.now_s += 0.4
    held.release.set()
    await best_effort
    await complete(site.service, urgent())
    # What was learnt counts from now on: this one has the time.
    await site.models.sleep("demo")
    await complete(site.service, urgent())


@pytest.mark.asyncio
async def test_a_tier_without_admission_waits_and_one_with_a_fallback_goes_there(
    site: ModelSite,
) -> None:
    site.engine.load_s = 12.5
    tiers = [
        {**INTERACTIVE, "fallback": "batch"},
        {**INTERACTIVE, "name": "patient", "admission": False},
        {**BATCH, "max_waiting": 1},
    ]
    assert (await site.reload(site.demo, tiers=tiers)).is_accepted
    await site.models.sleep("demo")
    held = hold_wakes(site)
    requests = [
        asyncio.create_task(complete(site.service, request_of(tier, tier)))
        for tier in ("interactive", "patient")
    ]
    await until(lambda: bool(held.begun))
    await asyncio.sleep(0)
    # The fallback has no more room than its own requests have.
    for tier in ("interactive", "batch"):
        with pytest.raises(Overloaded, match="'batch' has no room in its queue of 1 while the"):
            await complete(site.service, request_of(tier, "second"))
    held.release.set()
    await asyncio.gather(*requests)
    sent = {each.request_id.split("/")[0]: each for each in site.engine.started}
    assert (sent["interactive"].tier, sent["interactive"].service_class) == ("batch", "best_effort")
    assert sent["interactive"].objectives is None
    assert sent["patient"].tier == "patient" and sent["patient"].objectives is not None
    assert "tier 'batch' takes the request" in (await events_of(site, "interactive"))["demoted"]


@pytest.mark.asyncio
async def test_a_queue_takes_no_more_than_its_tier_says(site: ModelSite) -> None:
    assert (await site.reload(site.demo, tiers=[{**BATCH, "max_waiting": 3}])).is_accepted
    await site.models.sleep("demo")
    held = hold_wakes(site)
    requests = [
        asyncio.create_task(complete(site.service, request_of(n=count))) for count in (2, 2, 1, 1)
    ]
    await until(lambda: bool(held.begun) and sum(each.done() for each in requests) == 2)
    held.release.set()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert [isinstance(each, Overloaded) for each in results] == [False, True, False, True]


@pytest.mark.asyncio
async def test_a_deadline_holds_while_the_model_wakes(site: ModelSite, clock: Clock) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site)
    with pytest.raises(DeadlineExceeded, match="before the model was awake"):
        await complete(site.service, request_of(deadline_ms=50, arrival_s=clock()))
    assert site.states() == {"demo": "waking"} and not site.engine.started
    held.release.set()
    await complete(site.service, request_of())


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error",
    [CheckpointError("/secret/path: gone"), ZeroDivisionError()],
    ids=lambda error: type(error).__name__,
)
async def test_a_model_that_cannot_wake_has_failed(
    site: ModelSite, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site, error)
    requests = [asyncio.create_task(complete(site.service, request_of())) for _ in range(3)]
    await until(lambda: bool(held.begun))
    held.release.set()
    for each in requests:
        with pytest.raises(UnknownModel, match="^model 'demo' was asleep, and could not be"):
            await each
    failed = site.service.roster.get("demo")
    assert failed is not None and failed.state == "failed"
    assert failed.error == (str(error) or "ZeroDivisionError") and failed.progress is None
    assert "model_wake_failed" in [each.getMessage() for each in caplog.records]
    metrics = site.service.metrics
    assert sample(metrics, "omniserve_model_wakes_total", ('outcome="failed"',)) == 1
    with pytest.raises(UnknownModel):
        await complete(site.service, request_of())
    held.error = None
    await site.models.load(WantedName("demo"))
    await complete(site.service, request_of())


@pytest.mark.asyncio
async def test_a_model_that_there_is_no_room_to_wake_sleeps_on(
    site: ModelSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site, ConfigError("models.demo: 3 GB at /secret/path are lacking"))
    held.release.set()
    requests = [asyncio.create_task(complete(site.service, request_of())) for _ in range(3)]
    for each in requests:
        with pytest.raises(
            ModelUnavailable, match="no room to wake it; try again in 0.5 s"
        ) as told:
            await each
        assert told.value.retry_after_s == 0.5
    standing = site.service.roster.get("demo")
    assert standing is not None and standing.state == "asleep"
    assert standing.error == "models.demo: 3 GB at /secret/path are lacking"
    assert "model_wake_refused" in [each.getMessage() for each in caplog.records]
    metrics = site.service.metrics
    assert sample(metrics, "omniserve_model_wakes_total", ('outcome="refused"',)) == 1
    assert held.begun == ["demo"]

    # Not for every request: each pause is longer than the one before it.
    clock.now_s += 0.4
    with pytest.raises(ModelUnavailable, match="try again in 0.1 s"):
        await complete(site.service, request_of())
    assert held.begun == ["demo"]
    clock.now_s += 0.2
    with pytest.raises(ModelUnavailable, match="try again in 1.0 s"):
        await complete(site.service, request_of())
    assert held.begun == ["demo"] * 2

    # An operator may know better; who comes meanwhile waits for that.
    held.error = None
    held.release.clear()
    wake = asyncio.create_task(site.models.wake("demo"))
    await until(lambda: len(held.begun) == 3)
    request = asyncio.create_task(complete(site.service, request_of()))
    await asyncio.sleep(0.01)
    held.release.set()
    await wake
    assert (await request).choices
    standing = site.service.roster.get("demo")
    assert standing is not None and (standing.state, standing.error) == ("serving", "")
    await complete(site.service, request_of())
    await site.models.sleep("demo")
    held.error = ConfigError("no memory")
    with pytest.raises(ModelUnavailable, match="try again in 0.5 s"):
        await complete(site.service, request_of())


@pytest.mark.asyncio
async def test_a_stop_may_wait_for_those_who_wait_for_a_wake(site: ModelSite) -> None:
    queue = site.service.wake_queue
    assert queue is not None
    await queue.wait_none()
    await site.models.sleep("demo")
    held = hold_wakes(site)
    request = asyncio.create_task(complete(site.service, request_of()))
    idle = asyncio.create_task(queue.wait_none())
    await until(lambda: bool(held.begun))
    assert not idle.done()
    held.release.set()
    await idle
    assert len((await request).choices[0].token_ids) == 5


@pytest.mark.asyncio
async def test_an_engine_that_dies_amid_a_wake_leaves_the_model_asleep_but_not_for_ever(
    site: ModelSite,
) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site, EngineUnavailable("the engine was lost"))
    held.release.set()
    for number in range(3):
        assert site.states() == {"demo": "asleep"}, number
        with pytest.raises(EngineUnavailable, match="the engine was lost"):
            await complete(site.service, request_of())
    failed = site.service.roster.get("demo")
    assert failed is not None
    assert failed.error == "the engine died 3 times while it was being woken"
    assert site.engine.forgotten == ["demo"]


@pytest.mark.asyncio
async def test_a_model_that_sleeps_does_so_beside_a_new_engine(site: ModelSite) -> None:
    await site.models.load(WantedEntry(site.text("guest")))
    for name in ("demo", "guest"):
        await site.models.sleep(name)
    site.models.follow_engine("restarting")
    site.models.follow_engine("ready")
    assert site.states() == {"demo": "asleep", "guest": "asleep"}
    await complete(site.service, make_generation_request(model="guest", tier="batch"))
    assert site.states() == {"demo": "asleep", "guest": "serving"}


# Unloads, loads, pins and reloads


@pytest.mark.asyncio
async def test_a_model_is_unloaded_while_it_sleeps(site: ModelSite) -> None:
    await site.models.sleep("demo")
    with pytest.raises(ModelExists):
        await site.models.load(WantedName("demo"))
    done = await site.models.unload("demo", None, force=False)
    assert (done.state, done.num_finished, done.num_ended) == ("asleep", 0, 0)
    assert site.states() == {} and site.engine.unloaded == ["demo"]
    await site.models.load(WantedName("demo"))
    await complete(site.service, request_of())


@pytest.mark.asyncio
async def test_requests_that_wait_for_a_wake_end_before_their_model_goes(site: ModelSite) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site)
    waiting = asyncio.create_task(complete(site.service, request_of()))
    await until(lambda: bool(held.begun))
    unload = asyncio.create_task(site.models.unload("demo", 60.0, force=False))
    await until(lambda: site.states() == {"demo": "draining"})
    with pytest.raises(ModelUnavailable, match="'demo' is being unloaded"):
        await complete(site.service, request_of())
    for ask in (site.models.sleep, site.models.wake):
        with pytest.raises(ModelBusy, match="'demo' is draining"):
            await ask("demo")
    held.release.set()
    assert len((await waiting).choices[0].token_ids) == 5
    done = await unload
    assert (done.state, done.num_finished, done.num_ended) == ("waking", 1, 0)
    assert site.states() == {}


@pytest.mark.asyncio
async def test_an_unload_without_patience_cuts_off_who_waits_for_a_wake(site: ModelSite) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site)
    waiting = asyncio.create_task(complete(site.service, request_of()))
    await until(lambda: bool(held.begun))
    done = await site.models.unload("demo", 0.0, force=False)
    assert (done.num_finished, done.num_ended) == (0, 1)
    with pytest.raises(EngineUnavailable, match="was unloaded before the request had ended"):
        await waiting
    # The engine says so of a load that somebody unloaded.
    held.error = ConfigError("it was unloaded while it was being loaded")
    held.release.set()
    await asyncio.sleep(0.01)
    assert site.states() == {} and not site.engine.started


@pytest.mark.asyncio
async def test_a_model_may_be_pinned_in_its_sleep(site: ModelSite) -> None:
    await site.models.sleep("demo")
    site.models.pin("demo", True)
    with pytest.raises(ModelBusy, match="'demo' is pinned"):
        await site.models.unload("demo", 0.0, force=False)
    await complete(site.service, request_of())
    standing = site.service.roster.get("demo")
    assert standing is not None and standing.is_pinned and standing.state == "serving"
    await site.models.sleep("demo")


@pytest.mark.asyncio
async def test_a_reload_keeps_models_asleep_and_removes_those_that_are_gone(
    site: ModelSite,
) -> None:
    await site.reload(site.demo, site.entry("late"))
    await until(lambda: site.states() == {"demo": "serving", "late": "serving"})
    for name in ("demo", "late"):
        await site.models.sleep(name)
    taken = await site.reload({**site.demo, "aliases": ["other"]})
    assert taken.is_accepted
    await until(lambda: site.states() == {"demo": "asleep"})
    assert site.engine.unloaded == ["late"]
    await complete(site.service, make_generation_request(model="other", tier="batch"))


@pytest.mark.asyncio
async def test_a_daemon_that_stops_ends_wakes(site: ModelSite) -> None:
    await site.models.sleep("demo")
    held = hold_wakes(site)
    waiting = asyncio.create_task(complete(site.service, request_of()))
    operator = asyncio.create_task(site.models.wake("demo"))
    await until(lambda: bool(held.begun))
    await site.models.close()
    for each in (waiting, operator):
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await each


# By themselves


def tiers_of(**sleep_after_s: float | None) -> list[TierConfig]:
    return [
        TierConfig.model_validate({"name": name, "class": "best_effort", "sleep_after_s": after_s})
        for name, after_s in sleep_after_s.items()
    ]


@pytest.mark.parametrize(
    ("uses", "tiers", "due"),
    [
        ({}, {"a": 10, "b": 99}, 110.0),
        ({}, {"a": None, "b": 1}, None),
        ({"a": 200.0}, {"a": 10, "b": 99}, 210.0),
        ({"a": 200.0, "b": 130.0}, {"a": 10, "b": 99}, 229.0),
        ({"a": 200.0, "b": 130.0}, {"a": 10, "b": None}, None),
        ({"b": 130.0}, {"a": None, "b": 5}, 135.0),
        # A tier that is gone has no say any more.
        ({"gone": 900.0}, {"a": 10}, 110.0),
        ({"gone": 900.0, "b": 120.0}, {"a": None, "b": 5}, 125.0),
    ],
)
def test_every_tier_that_used_a_model_has_a_say(
    uses: dict[str, float], tiers: dict[str, float | None], due: float | None
) -> None:
    assert due_s(uses, 100.0, "a", tiers_of(**tiers)) == due


async def with_tiers(site: ModelSite, clock: Clock, *tiers: dict[str, object]) -> None:
    """And a model that serves since now."""
    assert (await site.reload(site.demo, tiers=list(tiers))).is_accepted
    await site.models.sleep("demo")
    await site.models.wake("demo")


@pytest.mark.asyncio
async def test_a_model_sleeps_once_its_tiers_have_had_their_time(
    site: ModelSite, clock: Clock
) -> None:
    tiers = ({**BATCH, "sleep_after_s": 30}, {**INTERACTIVE, "sleep_after_s": 600})
    await with_tiers(site, clock, *tiers)
    gate = site.engine.script = Gate()
    gate.is_open.set()
    # Nobody asked for it yet: its default tier counts.
    clock.now_s += 29.5
    assert site.models.idle.look() == pytest.approx(0.5)
    await complete(site.service, request_of("interactive"))
    clock.now_s += 599
    await complete(site.service, request_of("batch"))
    assert site.models.idle.look() == 1.0
    assert site.states() == {"demo": "serving"}
    # A request that runs keeps it awake, however long that takes.
    gate.is_open.clear()
    running = asyncio.create_task(complete(site.service, request_of("batch")))
    await until(lambda: bool(site.engine.running))
    clock.now_s += 10_000
    site.models.idle.look()
    assert site.states() == {"demo": "serving"}
    gate.is_open.set()
    await running
    clock.now_s += 29
    site.models.idle.look()
    assert site.states() == {"demo": "serving"}
    clock.now_s += 2
    site.models.idle.look()
    assert site.states() == {"demo": "asleep"}
    # What it was used for before says nothing any more.
    await complete(site.service, request_of("batch"))
    clock.now_s += 31
    site.models.idle.look()
    assert site.states() == {"demo": "asleep"}


@pytest.mark.asyncio
@pytest.mark.parametrize("keep", ["pin", "tier", "engine", "stop"])
async def test_what_keeps_a_model_awake(site: ModelSite, clock: Clock, keep: str) -> None:
    await with_tiers(site, clock, {**BATCH, "sleep_after_s": 30}, INTERACTIVE)
    if keep == "pin":
        site.models.pin("demo", True)
    elif keep == "tier":
        await complete(site.service, request_of("interactive"))
    elif keep == "engine":
        site.engine.ready = False
    else:
        site.service.draining = True
    clock.now_s += 1e6
    assert site.models.idle.look() == 1.0
    assert site.states() == {"demo": "serving"}


@pytest.mark.asyncio
async def test_a_model_that_nobody_asked_for_has_its_time_from_when_the_engine_is_ready(
    site: ModelSite, clock: Clock
) -> None:
    await with_tiers(site, clock, {**BATCH, "sleep_after_s": 30})
    site.engine.ready = False
    clock.now_s += 100
    site.models.idle.look()
    site.engine.ready = True
    clock.now_s += 29
    assert site.models.idle.look() == pytest.approx(1.0)
    clock.now_s += 2
    site.models.idle.look()
    assert site.states() == {"demo": "asleep"}


@pytest.mark.asyncio
async def test_a_model_that_came_has_its_time_whatever_its_name_was_used_for_before(
    site: ModelSite, clock: Clock
) -> None:
    await with_tiers(site, clock, {**BATCH, "sleep_after_s": 30})
    await site.models.sleep("demo")
    held = hold_wakes(site, CheckpointError("no such file"))
    held.release.set()
    with pytest.raises(UnknownModel):
        await complete(site.service, request_of())
    clock.now_s += 100
    held.error = None
    await site.models.load(WantedName("demo"))
    site.models.idle.look()
    assert site.states() == {"demo": "serving"}
    clock.now_s += 31
    site.models.idle.look()
    assert site.states() == {"demo": "asleep"}


@pytest.mark.asyncio
async def test_models_fall_asleep_by_themselves_while_somebody_watches(site: ModelSite) -> None:
    tiers = [{**BATCH, "sleep_after_s": 0.05}]
    assert (await site.reload(site.demo, tiers=tiers)).is_accepted
    watch = asyncio.create_task(site.models.idle.run())
    for _ in range(3):
        await until(lambda: site.states() == {"demo": "asleep"})
        await complete(site.service, request_of())
    watch.cancel()


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 31_536_001, "soon", True])
def test_a_time_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        TierConfig.model_validate({**BATCH, "sleep_after_s": value})


# How long a wake takes


def test_what_wakes_took_is_what_the_next_one_is_expected_to_take() -> None:
    forecast = WakeForecast()
    assert forecast.whole_s("a", 3.0) == 3.0
    for wake_s in (100.0, 1.0, 2.0, 3.0, 2.0):
        forecast.note("a", wake_s)
    assert forecast.whole_s("a", 50.0) == 2.0
    assert forecast.whole_s("b", 50.0) == 50.0


@pytest.mark.asyncio
async def test_what_a_model_took_to_wake_says_nothing_of_the_next_one_of_its_name(
    site: ModelSite, clock: Clock
) -> None:
    async def expected() -> str:
        await site.models.sleep("demo")
        held = hold_wakes(site)
        waiting = asyncio.create_task(complete(site.service, request_of(request_id="w")))
        await until(lambda: bool(held.begun))
        clock.now_s += 40
        held.release.set()
        await waiting
        return (await events_of(site, "w"))["model asleep"]

    assert [await expected() for _ in range(2)] == [
        f"it is expected to wake in {wake_s} s" for wake_s in ("0.0", "40.0")
    ]
    await site.models.unload("demo", None, force=False)
    site.engine.load_script = None
    await site.models.load(WantedName("demo"))
    site.engine.digest, site.engine.load_s = "another", 7.0
    assert await expected() == "it is expected to wake in 7.0 s"


@pytest.mark.parametrize(
    ("elapsed_s", "progress", "left"),
    [
        (0.0, None, 10.0),
        (4.0, LoadProgress("checking"), 6.0),
        (40.0, LoadProgress("reading", 1, 100), 1.0),
        (40.0, LoadProgress("reading", 25, 100), 120.0),
        (4.0, LoadProgress("reading", 80, 100), 1.0),
        (4.0, LoadProgress("warming_up", 100, 100), 1.0),
    ],
)
def test_what_is_left_of_a_wake(
    elapsed_s: float, progress: LoadProgress | None, left: float
) -> None:
    assert left_s(10.0, elapsed_s, progress) == pytest.approx(left)
