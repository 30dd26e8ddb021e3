"""Simulated models on one KV budget: memory goes where the load is, and floors are kept."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from simulate_builders import (
    BLOCK_SIZE,
    COSTS,
    KV_BYTES_PER_TOKEN,
    PIGGYBACK,
    backlog,
    chats,
    make_profile,
    make_settings,
    of_stream,
    tokens_per_s,
)

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import Stream
from omniserve.bench.run_record import RunRecord
from omniserve.errors import ConfigError
from omniserve.settings import EngineSettings, PiggybackSettings
from omniserve.simulate.run import Simulation
from scheduler.step_time import LinearStepTime

BLOCK_BYTES = BLOCK_SIZE * KV_BYTES_PER_TOKEN
BUDGET = 64 * BLOCK_BYTES
NAMES = ("m", "two")


def settings_of(
    kv_bytes: int | None,
    most_bytes: int,
    floors: Sequence[int | None] = (None, None),
    piggyback: PiggybackSettings | None = None,
    is_timed: bool = True,
) -> EngineSettings:
    (model,) = make_settings(piggyback=piggyback).models
    models = (
        replace(
            model,
            name=name,
            device_kv_bytes=most_bytes,
            device_kv_floor_bytes=floor,
            max_model_len=300,
            step_time=LinearStepTime(COSTS) if is_timed else None,
        )
        for name, floor in zip(NAMES, floors, strict=True)
    )
    device = replace(make_settings().device, kv_bytes=kv_bytes)
    return EngineSettings(device, tuple(models))


def run(
    streams: Sequence[Stream], settings: EngineSettings, duration_s: float = 8.0
) -> tuple[RunRecord, Simulation]:
    profile = make_profile(COSTS)
    options = LoadOptions(duration_s=duration_s, warm_up_s=0.0, drain_s=60.0)
    simulation = Simulation(streams, settings, dict.fromkeys(NAMES, profile), options)
    simulation.run()
    simulation.fleet.check_integrity()
    return simulation.record(), simulation


def of_two(stream: Stream, name: str) -> Stream:
    return replace(stream, info=replace(stream.info, model="two", name=name))


@pytest.mark.parametrize("is_timed", [False, True])
@pytest.mark.parametrize("piggyback", [None, PIGGYBACK])
def test_a_model_that_has_all_the_load_gets_all_the_memory(
    piggyback: PiggybackSettings | None, is_timed: bool
) -> None:
    streams = [backlog(12)]
    halves = settings_of(None, BUDGET // 2, piggyback=piggyback, is_timed=is_timed)
    fixed, _ = run(streams, halves)
    one = settings_of(BUDGET, BUDGET, (0, 0), piggyback, is_timed)
    shared, simulation = run(streams, one)
    assert {sample.kv_total_bytes for sample in shared.samples} == {BUDGET}
    most = max(sample.kv_used_bytes for sample in shared.samples)
    assert BUDGET // 2 < most <= BUDGET
    assert tokens_per_s(shared) > tokens_per_s(fixed)
    arbiter = simulation.fleet.engines[0].kv_sharing.arbiter
    stats = [arbiter.stats(name) for name in NAMES]
    assert stats[0] is not None and stats[0].in_bytes > BUDGET // 2


def test_best_effort_work_of_another_model_gives_way_within_few_steps() -> None:
    late = [(2.0 + 0.5 * number, 100, 20) for number in range(8)]
    settings = settings_of(BUDGET, BUDGET, (BUDGET // 2, 0))
    record, simulation = run([chats(late), of_two(backlog(12), "batch")], settings)
    found = of_stream(record, "chat")
    assert [each.outcome for each in found] == ["done"] * len(late)
    waits_s = sorted(each.ttft_s or 0.0 for each in found)
    assert waits_s[-2] <= 0.06 and waits_s[-1] <= 0.15
    arbiter = simulation.fleet.engines[0].kv_sharing.arbiter
    lent = arbiter.stats("two")
    assert lent is not None and lent.num_moves_out > 0
    schedulers = [each.scheduler for each in simulation.fleet.engines[0].models.values()]
    assert schedulers[1].counts.num_preemptions > 0
    assert tokens_per_s(record) > 10.0


def test_memory_that_is_given_back_takes_its_time() -> None:
    settings = settings_of(BUDGET, BUDGET, (0, 0))
    _, simulation = run([chats([(0.0, 200, 20), (0.0, 250, 20)])], settings, duration_s=2.0)
    engine = simulation.fleet.engines[0]
    before = engine.kv_sharing.arbiter.stats("m")
    assert before is not None and before.in_bytes > before.out_bytes
    # Nobody has had work for long.
    simulation.fleet._clock.now_s += 1000.0
    spent_s = engine.kv_sharing.balance()
    after = engine.kv_sharing.arbiter.stats("m")
    assert after is not None and after.out_bytes > before.out_bytes
    assert spent_s == pytest.approx((after.out_bytes - before.out_bytes) / 8e9)


def test_longest_requests_fit_what_a_model_can_reach() -> None:
    settings = settings_of(BUDGET, BUDGET, (0, BUDGET - 8 * BLOCK_BYTES))
    with pytest.raises(ConfigError, match=r"models\.m\.max_model_len: .* hold 128 tokens"):
        run([], settings)
    with pytest.raises(ConfigError, match="less than all device_kv_floor_bytes together"):
        run([], settings_of(BUDGET, BUDGET, (BUDGET, BUDGET)))
