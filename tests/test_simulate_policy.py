"""What the policy promises, on simulated runs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_builders import (
    HOST,
    PIGGYBACK,
    attainment,
    backlog,
    chats,
    make_profile,
    make_settings,
    mean_ttft_s,
    of_stream,
    poisson,
    run_simulation,
    tokens_per_s,
)

from omniserve.bench.run_record import RequestRecord, RunRecord
from omniserve.profiling.profile import HostModel
from omniserve.settings import PiggybackSettings
from scheduler.offload_rule import DeviceSpeed, HostSpeed
from scheduler.step_time import LinearStepTime, StepCosts

CHATS = chats(poisson(rate=4, num_requests=30))
SHORT_OF_KV = 64
"""Blocks, of 16 tokens: four documents of the backlog fill them."""
ALWAYS = replace(PIGGYBACK, when="always")


def test_first_tokens_do_not_wait_for_the_backlog() -> None:
    alone = mean_ttft_s(run_simulation([CHATS]))
    some = mean_ttft_s(run_simulation([CHATS, backlog(12)]))
    many = mean_ttft_s(run_simulation([CHATS, backlog(50)]))
    # A layer boundary, and the eight rows that may ride beside in each of its steps.
    assert many < 1.2 * alone
    assert many == pytest.approx(some, rel=0.05)


def test_without_its_class_a_request_would_wait_for_the_backlog() -> None:
    as_batch = chats(poisson(rate=4, num_requests=60), service_class="best_effort")
    waiting = mean_ttft_s(run_simulation([as_batch, backlog(100)]))
    assert waiting > 5 * mean_ttft_s(run_simulation([CHATS, backlog(100)]))


def test_best_effort_work_grows_with_the_speed_of_the_host() -> None:
    speeds = [
        tokens_per_s(_piggybacking(replace(HOST, kv_bytes_per_s=rate))) for rate in (20e6, 160e6)
    ]
    assert speeds[0] * 1.3 < speeds[1]


def test_host_lifts_best_effort_work_where_kv_is_short() -> None:
    without = tokens_per_s(run_simulation([CHATS, backlog(40)], make_settings(SHORT_OF_KV)))
    record = _piggybacking(HOST)
    assert tokens_per_s(record) > 1.3 * without
    assert record.num_layers == 8
    last = record.samples[-1]
    assert last.num_piggybacked_tokens > 0
    # Every token of theirs joined at every layer.
    assert last.num_rows_joined >= 8 * last.num_piggybacked_tokens


def _piggybacking(host: HostModel) -> RunRecord:
    return run_simulation(
        [CHATS, backlog(40)],
        make_settings(SHORT_OF_KV, ALWAYS),
        replace(make_profile(), host=host),
    )


@pytest.mark.parametrize("is_fast", [True, False])
def test_governor_decides_from_the_measured_speeds(is_fast: bool) -> None:
    device = DeviceSpeed(step_s=9e-3, row_s=1e-4, kv_bytes_per_s=1e9)
    speed = HostSpeed(device, device, 200e6 if is_fast else 1e3)
    profile = replace(make_profile(), host=replace(HOST, speed=speed))
    record = run_simulation([backlog(40)], make_settings(SHORT_OF_KV, PIGGYBACK), profile)
    assert (record.samples[-1].num_piggybacked_tokens > 0) is is_fast


def test_steps_take_longer_while_the_host_has_its_cores() -> None:
    alone = StepCosts(1e-3, ((1, 8e-3), (101, 18e-3)))
    slow = LinearStepTime(alone, replace(alone, overhead_s=20e-3))
    shared = replace(make_profile(), step_time=slow)
    config = make_settings(SHORT_OF_KV, ALWAYS)
    num_steps = [
        run_simulation([CHATS, backlog(40)], config, profile).samples[-1].num_steps
        for profile in (make_profile(alone), shared)
    ]
    assert num_steps[1] < 0.6 * num_steps[0]


def test_twice_the_load_lowers_attainment_and_a_second_engine_mends_it() -> None:
    once = chats(poisson(rate=12, num_requests=200))
    twice = chats((at_s / 2, prompt, output) for at_s, prompt, output in poisson(12, 200))
    met = [
        attainment(run_simulation(streams, num_engines=engines), ttft_s=0.06, tpot_s=0.016)
        for streams, engines in (([once], 1), ([twice], 1), ([twice], 2))
    ]
    assert met[1] < met[0] - 0.1
    assert met[2] > met[1] + 0.1


def test_same_seed_same_record_and_another_seed_another() -> None:
    profile = replace(make_profile(), step_ratio_quantiles=(0.8, 1.0, 1.4))

    def record(seed: int) -> RunRecord:
        return run_simulation(
            [CHATS, backlog(40)],
            make_settings(SHORT_OF_KV, ALWAYS),
            profile,
            duration_s=3.0,
            seed=seed,
        )

    first = record(1)
    assert first == record(1)
    assert first.requests != record(2).requests


def test_backlog_is_kept_full_until_the_measured_part_ends() -> None:
    record = run_simulation([backlog(5)], duration_s=10.0)
    requests = of_stream(record, "batch")
    for at_s in (0.5, 3.3, 9.9):
        open_ = [each for each in requests if each.scheduled_s <= at_s and not _ended(each, at_s)]
        assert len(open_) == 5
    assert sorted(each.outcome for each in requests)[:5] == ["cut_off"] * 5
    assert max(each.scheduled_s for each in requests) < 10.0
    assert not [each for each in requests for time in each.token_times_s if time > 10.0]


def _ended(request: RequestRecord, at_s: float) -> bool:
    return request.ended_s is not None and request.ended_s <= at_s


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(min_value=0, max_value=1), st.integers(1, 250), st.integers(1, 40)),
        max_size=8,
    ),
    st.integers(0, 12),
    st.sampled_from([None, ALWAYS, replace(ALWAYS, binding_points=3, max_lane_rows=2)]),
    st.sampled_from([None, 0, 2]),
    st.sampled_from([20, 64]),
    st.sampled_from([1, 2]),
)
def test_every_request_gets_its_tokens_in_order(
    arrivals: list[tuple[float, int, int]],
    concurrency: int,
    piggyback: PiggybackSettings | None,
    max_resident_decodes: int | None,
    num_blocks: int,
    pipeline_depth: int,
) -> None:
    if piggyback is not None:
        piggyback = replace(
            piggyback, max_lane_rows_beside_ls=2, max_resident_decodes=max_resident_decodes
        )
    record = run_simulation(
        [chats(sorted(arrivals)), backlog(concurrency, [(200, 30), (30, 60)])],
        make_settings(num_blocks, piggyback),
        replace(make_profile(), pipeline_depth=pipeline_depth, launch_s=1e-3),
        duration_s=1.5,
    )
    for request in record.requests:
        times = request.token_times_s
        assert times == sorted(times)
        assert request.stream == "batch" or request.outcome == "done"
        if request.outcome == "done":
            assert len(times) == request.max_tokens
            assert request.ended_s == times[-1] > request.scheduled_s
