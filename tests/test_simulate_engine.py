"""The simulated engine: times by hand, and the same plans as the engine that serves."""

from array import array
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from engine_builders import make_engine, make_model_settings, make_request, run_all
from simulate_builders import (
    HOST,
    NUM_LAYERS,
    PIGGYBACK,
    backlog,
    chats,
    make_profile,
    make_settings,
    of_stream,
    run_simulation,
)

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import Stream
from omniserve.engine.core import Engine
from omniserve.profiling.profile import FrontLatency
from omniserve.requests import SamplingParams, ServiceClassName
from omniserve.settings import EngineSettings
from omniserve.simulate.agenda import Agenda
from omniserve.simulate.clock import Clock
from omniserve.simulate.fleet import Fleet
from omniserve.simulate.run import simulate
from omniserve.synthetic.info import model_report
from scheduler import Request, Scheduler, ServiceClass, StepPlan
from scheduler.step_time import LinearStepTime, StepCosts

FLAT = StepCosts(overhead_s=0.0, dense_ladder=((1, 0.8),))
"""Every step takes 0.8 s, 0.1 s a layer."""


def test_one_request_takes_what_its_steps_cost() -> None:
    prompt, output = 100, 4
    costs = StepCosts(
        1e-3, ((1, 8e-3),), decode_context_token_s=2e-6, prefill_pair_s=1e-6, sampled_row_s=5e-4
    )
    settings = make_settings(max_step_tokens=64)
    record = run_simulation([chats([(1.0, prompt, output)])], settings, make_profile(costs))
    (request,) = record.requests
    # Two chunks, of which the second samples; together they attend to 1 + 2 + .. + 100 tokens.
    expected = [1.0 + 2 * 9e-3 + prompt * (prompt + 1) / 2 * 1e-6 + 5e-4]
    for context in range(prompt + 1, prompt + output):
        expected.append(expected[-1] + 9e-3 + context * 2e-6 + 5e-4)
    assert request.token_times_s == pytest.approx(expected)
    assert request.outcome == "done"
    assert request.ended_s == pytest.approx(expected[-1])


def test_front_adds_to_the_first_token_on_the_way_in_and_to_all_on_the_way_out() -> None:
    streams = [chats([(1.0, 10, 3)])]
    plain = run_simulation(streams).requests[0]
    profile = replace(make_profile(), front=FrontLatency(way_in_s=0.3, way_out_s=0.2))
    seen = run_simulation(streams, profile=profile).requests[0]
    assert seen.token_times_s == pytest.approx([time + 0.5 for time in plain.token_times_s])


def test_front_steals_time_from_the_engine() -> None:
    streams = [chats([(1.0, 10, 3)])]
    plain = run_simulation(streams).requests[0].token_times_s
    front = FrontLatency(stolen_s_per_request=0.1, stolen_s_per_token=0.01)
    profile = replace(make_profile(), front=front)
    seen = run_simulation(streams, profile=profile).requests[0].token_times_s
    assert seen == pytest.approx([plain[0] + 0.1, plain[1] + 0.11, plain[2] + 0.12])


@pytest.mark.parametrize(("arrival_s", "boundary_s"), [(0.25, 0.3), (0.3, 0.3), (0.75, 0.8)])
def test_best_effort_step_stops_at_a_layer_for_an_arrival(
    arrival_s: float, boundary_s: float
) -> None:
    assert NUM_LAYERS == 8
    chat_stream = chats([(arrival_s, 10, 1)])
    record = run_simulation(
        [backlog(1, [(10, 3)]), chat_stream], profile=make_profile(FLAT), duration_s=2.0
    )
    (chat,), batch = of_stream(record, "chat"), of_stream(record, "batch")[0]
    assert chat.token_times_s == pytest.approx([boundary_s + 0.8])
    assert batch.token_times_s[0] == pytest.approx(1.6)


def test_a_parked_best_effort_step_lets_decodes_pass_that_are_due() -> None:
    # Steps take 0.8 s whatever they hold, and chats are paced at 0.9 s a token: that leaves 0.1 s
    # for anything else.
    chat_stream = chats([(0.25, 10, 3)])
    info = replace(chat_stream.info, ttft_ms=9000.0, tpot_ms=1000.0)
    (model,) = make_settings(max_step_tokens=8).models
    settings = EngineSettings(
        make_settings().device, (replace(model, step_time=LinearStepTime(FLAT)),)
    )
    streams: list[Stream] = [backlog(1, [(60, 3)]), replace(chat_stream, info=info)]
    record = run_simulation(streams, settings, make_profile(FLAT), duration_s=20.0)
    (chat,), batch = of_stream(record, "chat"), of_stream(record, "batch")[0]
    assert chat.tpot_s is not None and chat.tpot_s <= 0.9 + 1e-9
    # Nor does it wait for all of them: a layer of it ran between any two.
    assert chat.tpot_s > 0.85
    assert batch.outcome == "done"


def test_an_arrival_while_a_step_with_lanes_is_laid_out_stops_it_behind_its_first_layer() -> None:
    costs = StepCosts(overhead_s=0.5, dense_ladder=((1, 0.8),))
    settings = make_settings(64, replace(PIGGYBACK, when="always"))
    record = run_simulation(
        [backlog(1, [(10, 3)]), chats([(0.25, 10, 1)])], settings, make_profile(costs), 2.0
    )
    (chat,) = of_stream(record, "chat")
    # Laid out until 0.5, one layer of 0.1 s, and a whole step of its own.
    assert chat.token_times_s == pytest.approx([0.5 + 0.1 + 0.5 + 0.8])


def test_each_model_has_its_own_front() -> None:
    one, two = make_settings().models[0], replace(make_settings().models[0], name="two")
    settings = EngineSettings(make_settings().device, (one, two))
    stream = chats([(0.0, 10, 1)])
    stream = replace(stream, info=replace(stream.info, model="two"))
    quick = make_profile(FLAT)
    slow = replace(quick, front=FrontLatency(stolen_s_per_request=0.3))
    options = LoadOptions(duration_s=2.0, warm_up_s=0.0)
    record = simulate([stream], settings, {"m": quick, "two": slow}, options)
    assert record.requests[0].token_times_s == pytest.approx([0.3 + 0.8])


def test_latency_sensitive_step_does_not_stop_for_an_arrival() -> None:
    streams = [chats([(0.0, 10, 1), (0.25, 10, 1)])]
    record = run_simulation(streams, profile=make_profile(FLAT))
    assert [each.token_times_s for each in record.requests] == [
        pytest.approx([0.8]),
        pytest.approx([1.6]),
    ]


@pytest.mark.parametrize(("overhead_s", "token_s"), [(0.1, 0.8), (2.0, 2.0)])
def test_plans_ahead_hide_the_shorter_of_host_and_device(overhead_s: float, token_s: float) -> None:
    costs = StepCosts(overhead_s, ((1, 0.8),))
    profile = replace(make_profile(costs), pipeline_depth=2)
    times = run_simulation([chats([(0.0, 10, 9)])], profile=profile).requests[0].token_times_s
    gaps = [after - before for before, after in zip(*_shifted(times), strict=True)]
    # The last token needs no plan beside it.
    assert gaps[:-1] == pytest.approx([token_s] * (len(gaps) - 1))


def test_row_in_the_lanes_meets_the_host_at_every_layer() -> None:
    host = replace(HOST, kv_bytes_per_s=1e15, task_overhead_s=0.05, result_delay_s=0.01)
    profile = replace(make_profile(StepCosts(1e-3, ((1, 9e-3),))), host=host)
    piggyback = replace(PIGGYBACK, when="always", max_resident_decodes=0)
    record = run_simulation([backlog(1, [(10, 5)])], make_settings(64, piggyback), profile, 2.0)
    times = record.requests[0].token_times_s
    # The row is in one segment of nine at a time, each of which costs a ninth of 9 ms, spread over
    # the step's eight layers; it leaves at one layer further in each of nine steps.
    layer_s = 1e-3 / 8
    token_s = sum(1e-3 + layer * layer_s + 0.06 for layer in range(8)) + 1e-3 + 8 * layer_s
    gaps = [after - before for before, after in zip(*_shifted(times), strict=True)]
    assert gaps[1:] == pytest.approx([token_s] * 3, rel=1e-4)


def test_rows_of_a_backlog_that_is_given_up_are_nobodys() -> None:
    # The chat is on its way while the measured part ends, so that a best-effort step is under way.
    profile = replace(make_profile(), front=FrontLatency(way_in_s=0.2))
    piggyback = replace(PIGGYBACK, when="always", max_resident_decodes=0)
    settings, documents = make_settings(64, piggyback), backlog(8, [(10, 200)])
    # Rows leave the last layer in one step of nine; one of these ends comes amid it.
    for number in range(10):
        record = run_simulation(
            [chats([(0.3, 10, 5)]), documents], settings, profile, 0.31 + 0.009 * number
        )
        assert [each.outcome for each in of_stream(record, "chat")] == ["done"]
        assert {each.outcome for each in of_stream(record, "batch")} == {"cut_off"}
        assert record.samples[-1].num_piggybacked_tokens > 0
        # Plain numbers, as those of a real run: what reads them need not know numpy's.
        times_s = [at_s for each in record.requests for at_s in each.token_times_s]
        assert {type(at_s) for at_s in times_s} == {float}


def test_slow_steps_are_drawn_from_the_measured_ratios() -> None:
    profile = replace(make_profile(FLAT), step_ratio_quantiles=(1.0, 1.0, 1.0, 3.0))
    times = run_simulation([chats([(0.0, 10, 400)])], profile=profile, duration_s=2000.0)
    steps = [b - a for a, b in zip(*_shifted(times.requests[0].token_times_s), strict=True)]
    assert min(steps) == pytest.approx(0.8)
    assert max(steps) > 2.3
    # A third of them lies between 1 and 3 times, evenly.
    assert sum(steps) / len(steps) == pytest.approx(0.8 * 4 / 3, rel=0.07)


def _shifted(times: list[float]) -> tuple[list[float], list[float]]:
    return times[:-1], times[1:]


def test_what_can_never_run_fails_and_says_why() -> None:
    clock = Clock()
    refused = []
    fleet = Fleet(
        1,
        make_settings(),
        {"m": make_profile()},
        clock,
        agenda := Agenda(clock),
        Random(0),
        lambda model, sampled, finished: None,
        lambda model, request, error: refused.append((request.request_id, str(error))),
    )
    fleet.submit("m", _request("r", 5000, 1, "latency_sensitive"))
    while agenda.next_s is not None:
        agenda.do_next()
    assert [request_id for request_id, _ in refused] == ["r"]
    assert "5000" in refused[0][1]


REQUESTS: tuple[tuple[str, str, int, int, ServiceClassName], ...] = (
    ("b0", "one", 90, 30, "best_effort"),
    ("b1", "one", 70, 12, "best_effort"),
    ("l0", "one", 50, 9, "latency_sensitive"),
    ("b2", "two", 100, 5, "best_effort"),
    ("l1", "one", 33, 20, "latency_sensitive"),
    ("l2", "one", 120, 3, "latency_sensitive"),
    ("b3", "two", 60, 30, "best_effort"),
)
"""More than the device holds: some are preempted and computed again."""


# With two plans in flight the simulator takes the device for one that captures graphs.
@pytest.mark.parametrize(("pipeline_depth", "are_shared"), [(1, False), (2, False), (1, True)])
def test_plans_are_those_of_the_engine(
    tiny_checkpoint: Path, pipeline_depth: int, are_shared: bool
) -> None:
    bytes_per_token = model_report(tiny_checkpoint).kv_bytes_per_token
    models = [
        make_model_settings(
            tiny_checkpoint,
            name=name,
            device_kv_bytes=bytes_per_token * 16 * 13,
            block_size=16,
            max_step_tokens=48,
            best_effort_tokens_beside_ls=8,
        )
        for name in ("one", "two")
    ]
    engine = make_engine(*models, pipeline_depth=pipeline_depth)
    # Both have the same weights.
    engine._stepping.riding.is_on = are_shared
    num_layers = engine.runtime("one").num_layers
    real: list[StepPlan] = []
    for model in models:
        _note_plans(engine.runtime(model.name).scheduler, real)
    _run_real(engine)

    profile = replace(
        make_profile(),
        num_layers=num_layers,
        kv_bytes_per_token=bytes_per_token,
        pipeline_depth=pipeline_depth,
    )
    clock = Clock()
    agenda = Agenda(clock)
    fleet = Fleet(
        1,
        EngineSettings(make_settings().device, tuple(models)),
        {"one": profile, "two": profile},
        clock,
        agenda,
        Random(0),
        lambda model, sampled, finished: None,
        lambda model, request, error: pytest.fail(str(error)),
        {name: [f"layer {index}" for index in range(num_layers)] for name in ("one", "two")}
        if are_shared
        else {},
    )
    simulated: list[StepPlan] = []
    for each in fleet.engines[0].models.values():
        _note_plans(each.scheduler, simulated)
    for request_id, name, prompt, output, service_class in REQUESTS:
        fleet.submit(name, _request(request_id, prompt, output, service_class))
    while agenda.next_s is not None:
        agenda.do_next()
    assert any(plan.preempted_ids for plan in real), "the case is too easy"
    for model in models:
        joint = engine._stepping.riding.stats(model.name)
        assert (joint.num_layers > 0) == are_shared
        assert fleet.engines[0].joint_layers(model.name) == joint
    assert _rows(simulated) == _rows(real)


def _run_real(engine: Engine) -> None:
    run_all(
        engine,
        [
            make_request(
                request_id,
                _prompt(request_id, prompt),
                SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output),
                service_class,
                model,
            )
            for request_id, model, prompt, output, service_class in REQUESTS
        ],
    )
    engine.close()


def _prompt(request_id: str, num_tokens: int) -> list[int]:
    """No two requests begin alike."""
    return [ord(request_id[0]), ord(request_id[-1]), *range(1, num_tokens - 1)]


def _request(request_id: str, prompt: int, output: int, service_class: ServiceClassName) -> Request:
    return Request(
        request_id=request_id,
        service_class=ServiceClass(service_class),
        tier="",
        arrival_s=0.0,
        token_ids=array("q", _prompt(request_id, prompt)),
        max_tokens=output,
    )


def _note_plans(scheduler: Scheduler, plans: list[StepPlan]) -> None:
    """Adds the plans of a scheduler, as they are made from now on."""
    depart = scheduler._flights.depart

    def note(plan: StepPlan) -> None:
        plans.append(plan)
        depart(plan)

    scheduler._flights.depart = note  # type: ignore[method-assign]


def _rows(plans: list[StepPlan]) -> list[list[tuple[str, int, int, bool]]]:
    return [
        [(rows.request_id, rows.start, rows.num_tokens, rows.samples) for rows in plan.rows]
        for plan in plans
    ]
