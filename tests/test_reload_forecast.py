"""What tiers would have made of past requests: the record, the simulation and its process."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from forecast_children import forecast_processes
from service_builders import until
from simulate_builders import COSTS, make_profile, make_settings

from omniserve.config import Config
from omniserve.reload.arrivals import WINDOW_S, ArrivalRecord
from omniserve.reload.forecast_messages import ForecastJob, PastRequest, TierOutcome
from omniserve.reload.forecast_process import forecast
from omniserve.reload.forecaster import Forecasted, Forecaster, NoForecast
from omniserve.requests import EngineRequest, SamplingParams, TierRules, TierSettings
from omniserve.settings import EngineSettings, ModelInfo
from omniserve.tier_table import TierTable
from scheduler import Objectives
from scheduler.step_time import LinearStepTime

CHAT = TierSettings("chat", "latency_sensitive", Objectives(0.5, 0.05))
BATCH = TierSettings("batch", "best_effort")
STEP_TIME = LinearStepTime(COSTS)


def make_job(
    requests: Sequence[PastRequest],
    after: Sequence[TierSettings] = (CHAT, BATCH),
    duration_s: float = 10.0,
    limit_s: float = 60.0,
) -> ForecastJob:
    settings = make_settings()
    models = (replace(settings.models[0], step_time=STEP_TIME),)
    return ForecastJob(
        settings=replace(settings, models=models),
        profiles={"m": replace(make_profile(), host=None)},
        before=(CHAT, BATCH),
        after=tuple(after),
        requests=tuple(requests),
        duration_s=duration_s,
        limit_s=limit_s,
    )


def burst(num: int, tier: str = "chat", at_s: float = 0.0) -> list[PastRequest]:
    """Prompts of 100 tokens, that take 18 ms and a little each, and 10 tokens of output."""
    return [PastRequest(at_s, "m", tier, tier, 100, 10) for _ in range(num)]


def outcomes(job: ForecastJob) -> dict[str, tuple[TierOutcome | None, TierOutcome | None]]:
    return {tier.tier: (tier.before, tier.after) for tier in forecast(job).tiers}


def test_equal_tiers_have_equal_outcomes() -> None:
    answer = forecast(make_job([*burst(3), *burst(20, "batch", 1.0), *burst(2, at_s=2.0)]))
    assert (answer.num_arrivals, answer.arrivals_s) == (25, 10.0)
    for tier in answer.tiers:
        assert tier.before == tier.after
    chat, batch = (tier.before for tier in answer.tiers)
    assert chat == TierOutcome(5, 0, 1.0, 1.0, 5.0)
    assert batch == TierOutcome(20, 0, None, None, 20.0)


def test_a_tighter_objective_refuses_what_would_be_late() -> None:
    tight = replace(CHAT, objectives=Objectives(0.1, 0.05))
    (before, after) = outcomes(make_job(burst(20), [tight, BATCH]))["chat"]
    assert before is not None and after is not None
    assert before.num_refused == 0
    assert before.ttft_attainment == 1.0
    # Four or five prompts fit in 100 ms.
    assert 14 <= after.num_refused <= 17
    assert after.ttft_attainment == pytest.approx(1 - after.num_refused / 20)
    assert after.tokens_per_s == pytest.approx((20 - after.num_refused) * 10 / 10.0)


def test_without_admission_nobody_is_refused_and_many_are_late() -> None:
    tight = TierSettings("chat", "latency_sensitive", Objectives(0.1, 0.05), TierRules(False))
    (_, after) = outcomes(make_job(burst(20), [tight, BATCH]))["chat"]
    assert after is not None
    assert after.num_refused == 0
    assert after.ttft_attainment is not None and after.ttft_attainment < 0.5


def test_a_fallback_takes_what_would_be_late() -> None:
    rules = TierRules(fallback="batch")
    tight = TierSettings("chat", "latency_sensitive", Objectives(0.1, 0.05), rules)
    (_, after) = outcomes(make_job(burst(20), [tight, BATCH]))["chat"]
    assert after is not None
    assert (after.num_requests, after.num_refused, after.tokens_per_s) == (20, 0, 20.0)


def test_a_bounded_queue_refuses_what_finds_it_full() -> None:
    bounded = replace(BATCH, rules=TierRules(max_waiting=5))
    (before, after) = outcomes(make_job(burst(80, "batch"), [CHAT, bounded]))["batch"]
    assert before is not None and after is not None
    assert before.num_refused == 0
    # One runs and five wait.
    assert after.num_refused == 80 - 6


def test_requests_of_tiers_that_are_not_there() -> None:
    requests = [
        PastRequest(0.0, "m", "batch", "", 10, 5),
        PastRequest(0.1, "m", "", "night", 10, 5),
    ]
    answer = outcomes(make_job(requests, [CHAT, TierSettings("night", "best_effort")]))
    gone, new = answer["batch"], answer["night"]
    assert gone[0] is not None and gone[0].num_requests == 1
    assert gone[1] is None
    assert new[0] is None
    assert new[1] is not None and new[1].num_requests == 1


def test_short_of_time_it_ends_with_fewer_arrivals() -> None:
    times = iter(range(1000))
    requests = [each for at_s in range(100) for each in burst(1, at_s=float(at_s))]
    job = make_job(requests, duration_s=100.0, limit_s=10.0)
    answer = forecast(job, clock=lambda: float(next(times)))
    # Of ten looks at the clock seven are for arrivals, of five seconds each; the first begins it.
    assert 25.0 <= answer.arrivals_s <= 35.0
    assert answer.num_arrivals == int(answer.arrivals_s) + 1
    assert all(tier.before == tier.after for tier in answer.tiers)


@dataclass
class Engine:
    """What a forecaster asks of the engine's client."""

    settings: EngineSettings = field(default_factory=make_settings)
    step_times: Mapping[str, LinearStepTime] = field(default_factory=lambda: {"m": STEP_TIME})
    device: str = "cpu, 1 threads"
    models: Mapping[str, ModelInfo] = field(
        default_factory=lambda: {
            "m": ModelInfo("m", "Made", "float32", 100, 2048, 1 << 10, 8 << 20, 1, (), 8)
        }
    )


def make_table(ttft_ms: float = 500) -> TierTable:
    chat = {"name": "chat", "class": "latency_sensitive", "ttft_ms": ttft_ms, "tpot_ms": 50}
    tiers = [chat, {"name": "batch", "class": "best_effort"}]
    models = [{"name": "m", "path": "/m"}]
    config = Config.model_validate({"models": models, "tiers": tiers}, by_name=False)
    return TierTable(config.tiers, config.models)


def make_arrivals(num: int = 3, clock: Callable[[], float] = lambda: 10.0) -> ArrivalRecord:
    record = ArrivalRecord(clock)
    for number in range(num):
        record.note(None, float(number), [make_sequence(number)])
    return record


def make_sequence(number: int = 0, max_tokens: int = 10) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens)
    return EngineRequest(str(number), "m", (1,) * 20, sampling, "latency_sensitive", "chat")


def test_arrivals_are_of_the_last_hour_and_bounded() -> None:
    now_s = 0.0
    record = ArrivalRecord(lambda: now_s, max_arrivals=3)
    for number in range(5):
        record.note("chat", float(number), [make_sequence(number)])
    assert [each.at_s for each in record.recent()] == [2.0, 3.0, 4.0]
    now_s = WINDOW_S + 3.5
    assert [each.at_s for each in record.recent()] == [4.0]


def test_arrivals_learn_how_long_they_became() -> None:
    record = make_arrivals(0)
    ended, refused = record.note("chat", 1.0, [make_sequence(), make_sequence()])
    ended.note_length(4)
    refused.note_length(0)
    assert [each.num_output_tokens for each in record.recent()] == [4, 10]
    assert not [word for each in record.recent() for word in str(each) if word == "(1, 1"]


@pytest.mark.asyncio
async def test_a_forecast_comes_from_a_process_of_its_own() -> None:
    answer = await Forecaster(make_arrivals(), Engine(), lambda: 10.0).compare(
        make_table(), make_table(ttft_ms=5)
    )
    assert isinstance(answer, Forecasted)
    assert answer.notes == ()
    chat = answer.forecast.tiers[0]
    assert chat.before == TierOutcome(3, 0, 1.0, 1.0, 3.0)
    # A step alone takes 9 ms.
    assert chat.after == TierOutcome(3, 3, 0.0, 0.0, 0.0)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("arrivals", "engine", "reason"),
    [
        (make_arrivals(0), Engine(), "no request arrived within the last hour"),
        (make_arrivals(), Engine(models={}), "the engine is not ready"),
        (make_arrivals(), Engine(step_times={}), "step times of no model"),
    ],
)
async def test_no_forecast_says_why(arrivals: ArrivalRecord, engine: Engine, reason: str) -> None:
    answer = await Forecaster(arrivals, engine, lambda: 10.0).compare(make_table(), make_table())
    assert isinstance(answer, NoForecast)
    assert reason in answer.reason


@pytest.mark.asyncio
async def test_too_long_a_forecast_is_ended() -> None:
    forecaster = Forecaster(make_arrivals(), Engine(), lambda: 10.0, limit_s=0.02)
    answer = await forecaster.compare(make_table(), make_table())
    assert answer == NoForecast("the simulation took longer than 0.02 s")
    assert not forecast_processes()


@pytest.mark.asyncio
async def test_a_client_that_leaves_ends_its_forecast() -> None:
    # So much that the process is seen, whenever that is looked for.
    arrivals = make_arrivals(0)
    arrivals.note("batch", 0.0, [make_sequence(number, 1000) for number in range(10_000)])
    forecaster = Forecaster(arrivals, Engine(), lambda: 10.0)
    asking = asyncio.create_task(forecaster.compare(make_table(), make_table()))
    await until(lambda: bool(forecast_processes()))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not forecast_processes()
