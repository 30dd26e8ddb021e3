"""What a status says, against a service whose engine follows a script."""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from service_builders import (
    ScriptedEngine,
    complete,
    counting,
    make_generation_request,
    make_kv_share,
    make_piggyback_stats,
    make_service,
    silent,
    until,
)
from status_builders import make_reporter

from omniserve.errors import InvalidRequest
from omniserve.message_fields import message_fields
from omniserve.requests import SamplingParams
from omniserve.settings import JointLayerStats, ModelStats
from omniserve.status.host_usage import CoreTimes, HostMeter

BUSY = ModelStats(
    name="demo",
    running={"interactive": 2},
    waiting={"batch": 3},
    kv_used_bytes=25,
    kv_total_bytes=100,
    num_steps=7,
    num_preemptions=1,
    num_cached_prompt_tokens=0,
    step_ms=2.5,
    piggyback=make_piggyback_stats(),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def half_busy() -> HostMeter:
    times = iter(CoreTimes(float(total), total / 2) for total in range(0, 10_000, 10))
    return HostMeter(lambda: next(times))


@pytest.mark.asyncio
async def test_tiers_have_their_work_and_how_they_keep_their_objectives(
    tiny_checkpoint: Path,
) -> None:
    clock = Clock()
    service = make_service(tiny_checkpoint, ScriptedEngine(stats={"demo": BUSY}), clock=clock)
    reporter = make_reporter(service, clock=clock)
    reporter.sample()
    request = make_generation_request(tier="interactive", sampling=SamplingParams(max_tokens=20))
    await complete(service, request)
    clock.now_s += 2.0
    reporter.sample()
    interactive, voice, batch = reporter.status().tiers
    assert [each.tier for each in (interactive, voice, batch)] == ["interactive", "voice", "batch"]
    assert (interactive.model, interactive.service_class) == ("demo", "latency_sensitive")
    assert (interactive.ttft_ms, interactive.tpot_ms) == (500, 100)
    assert (interactive.num_running, interactive.num_waiting) == (2, 0)
    assert (batch.num_running, batch.num_waiting) == (0, 3)
    assert (interactive.output_tokens, interactive.output_tokens_per_s) == (20, 10.0)
    assert (batch.output_tokens, batch.output_tokens_per_s) == (0, 0.0)
    assert (interactive.ttft_attainment, interactive.tpot_attainment) == (1.0, 1.0)
    for tier, names in ((voice, ("ttft_attainment",)), (batch, ("ttft_ms", "ttft_attainment"))):
        assert not any(tier.HasField(name) for name in names)


@pytest.mark.asyncio
async def test_shares_of_a_kv_budget_are_shown_where_there_is_one(tiny_checkpoint: Path) -> None:
    sharing = replace(
        BUSY,
        kv_granted_bytes=41,
        kv_cached_bytes=42,
        kv_share=make_kv_share(),
        host_kv_share=make_kv_share(61),
    )
    for stats in (BUSY, sharing):
        service = make_service(tiny_checkpoint, ScriptedEngine(stats={"demo": stats}))
        (model,) = make_reporter(service, meter=half_busy()).status().models
        assert model.HasField("kv_share") == (stats is sharing)
        assert model.piggyback.HasField("kv_share") == (stats is sharing)
    of_host = model.piggyback.kv_share
    assert (of_host.granted_bytes, of_host.cached_bytes, of_host.floor_bytes) == (51, 52, 61)
    share = model.kv_share
    assert (share.granted_bytes, share.cached_bytes, share.floor_bytes) == (41, 42, 31)
    assert (share.num_moves_in, share.num_moves_out) == (32, 33)
    assert (share.in_bytes, share.out_bytes, share.moves_per_s) == (34, 35, 3.5)


@pytest.mark.asyncio
async def test_layers_that_went_along_with_others_are_told_as_a_part_of_all_layers(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine()
    num_layers = engine.models["demo"].num_layers
    for joint, share in ((None, None), (0, 0.0), (7, 1 / num_layers), (99 * num_layers, 1.0)):
        stats = None if joint is None else JointLayerStats(num_layers=joint, num_rows=11)
        engine.stats["demo"] = replace(BUSY, joint_layers=stats)
        service = make_service(tiny_checkpoint, engine)
        (model,) = make_reporter(service, meter=half_busy()).status().models
        assert model.HasField("joint_layers") == (stats is not None)
        if stats is not None:
            told = model.joint_layers
            assert (told.num_layers, told.num_rows) == (stats.num_layers, 11)
            assert told.share == pytest.approx(share)


@pytest.mark.asyncio
async def test_models_and_host_are_those_of_the_engine(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(stats={"demo": BUSY}))
    reporter = make_reporter(service, meter=half_busy())
    reporter.sample()
    status = reporter.status()
    (model,) = status.models
    assert (model.kv_used_bytes, model.kv_total_bytes, model.num_steps) == (25, 100, 7)
    piggyback = model.piggyback
    assert list(piggyback.rows_on_host) == [6, 7] and list(piggyback.rows_ready) == [10, 2]
    assert (piggyback.num_swaps_out, piggyback.num_swaps_in) == (16, 17)
    assert (piggyback.kv_used_bytes, piggyback.kv_total_bytes) == (21, 22)
    host = status.host
    assert (host.num_host_cores, host.has_host_cores, host.busy_share) == (3, True, 0.5)
    assert host.num_cores > 0 and 0 < host.memory_used_bytes < host.memory_total_bytes


@pytest.mark.asyncio
async def test_an_engine_that_restarts_leaves_gaps_not_errors(tiny_checkpoint: Path) -> None:
    engine = ScriptedEngine(ready=False, state="restarting", num_restarts=1)
    status = make_reporter(make_service(tiny_checkpoint, engine)).status()
    assert (status.state, status.num_engine_restarts) == ("restarting", 1)
    assert [model.state for model in status.models] == ["loading"]
    assert [tier.num_running for tier in status.tiers] == [0, 0, 0]
    assert not status.models[0].HasField("piggyback") and status.host.num_host_cores == 0


@pytest.mark.asyncio
async def test_requests_are_shown_while_they_are_here(tiny_checkpoint: Path) -> None:
    clock, engine = Clock(), ScriptedEngine(silent)
    service = make_service(tiny_checkpoint, engine, clock=clock)
    reporter = make_reporter(service, clock=clock)
    request = make_generation_request((1, 2, 3), request_id="chat-7", tier="batch")
    async with await service.start(request):
        await until(lambda: bool(engine.started))
        (shown,) = reporter.status().requests
        assert (shown.request_id, shown.model, shown.tier) == ("chat-7", "demo", "batch")
        assert (shown.prompt_tokens, shown.output_tokens, shown.phase) == (3, 0, "waiting")
        engine.stats["demo"] = ModelStats(
            *("demo", {}, {}, 0, 0, 0, 0, 0, 0.0), prefilling=(engine.started[0].request_id,)
        )
        assert reporter.status().requests[0].phase == "prefill"
    assert not reporter.status().requests


@pytest.mark.asyncio
async def test_a_request_that_has_tokens_is_decoding(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(counting))
    reporter = make_reporter(service)
    request = make_generation_request(sampling=SamplingParams(max_tokens=200))
    async with await service.start(request) as stream:
        await anext(stream)
        (shown,) = reporter.status().requests
        assert shown.phase == "decoding" and shown.output_tokens > 0 and shown.age_s > 0


@pytest.mark.asyncio
async def test_refusals_are_told_with_their_reason(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint)
    reporter = make_reporter(service)
    with pytest.raises(InvalidRequest):
        await service.start(make_generation_request(tier="gold", request_id="bad-1"))
    (refusal,) = reporter.status().refusals
    assert refusal.request_id == "bad-1" and "'gold' is not served" in refusal.reason
    assert not refusal.HasField("retry_after_s") and refusal.age_s >= 0
    assert not reporter.status().requests


@pytest.mark.asyncio
async def test_as_json_it_has_every_field_and_numbers_are_numbers(tiny_checkpoint: Path) -> None:
    service = make_service(tiny_checkpoint, ScriptedEngine(stats={"demo": BUSY}))
    status = make_reporter(service).status()
    fields = message_fields(status)
    assert set(fields) == {field.name for field in status.DESCRIPTOR.fields}
    assert fields["models"][0]["kv_used_bytes"] == 25
    assert fields["tiers"][2]["ttft_ms"] is None
    # Protobuf's own JSON is another way to the same names and nesting.
    for name, value in MessageToDict(status, preserving_proto_field_name=True).items():
        assert type(value) is type(fields[name]) or isinstance(value, (int, float, str))
