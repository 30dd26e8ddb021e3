"""Rules of parking, over whole runs of a device that several models share."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interleaving_builders import Job, Layer, SharedDevice, make_plan

from scheduler import Claim, StandingStep
from scheduler.interleaving import background_s, begun, gives_way, spare_s, stands_back

EARLY = 1e-9

jobs = st.builds(
    Job,
    model=st.sampled_from(["a", "b", "c"]),
    arrival_s=st.floats(0.0, 1.0),
    step_s=st.floats(0.005, 0.1),
    slack_s=st.floats(0.0, 0.4),
    is_first=st.booleans(),
)
devices = st.builds(
    SharedDevice,
    jobs=st.lists(jobs, min_size=1, max_size=12),
    backlogs=st.dictionaries(st.sampled_from(["c", "d", "e"]), st.floats(0.05, 2.0), max_size=3),
    riders=st.dictionaries(st.sampled_from(["a", "b"]), st.floats(0.01, 0.1), max_size=2),
    num_layers=st.integers(2, 12),
)


def foreign(layer: Layer) -> dict[str, Claim]:
    """Claims of models whose steps this layer held up."""
    return {name: c for name, c in layer.claims.items() if name != layer.step.model}


@settings(max_examples=60, deadline=None)
@given(devices)
def test_nobody_waits_for_two_layers_of_what_is_less_urgent(device: SharedDevice) -> None:
    device.run(3.0)
    for layer in device.layers:
        step, now_s = layer.step, layer.began_s
        for claim in foreign(layer).values():
            # Known when this layer was chosen, so this is no first layer that it waits for.
            if not step.is_urgent:
                assert claim.begin_by_s - now_s >= step.layer_s - EARLY
            elif claim.begin_by_s - now_s < step.layer_s - EARLY:
                # Those that are late already take turns.
                assert layer.due_s <= max(claim.due_s, now_s) + EARLY


@settings(max_examples=60, deadline=None)
@given(devices)
def test_first_tokens_wait_for_no_best_effort_step(device: SharedDevice) -> None:
    device.run(3.0)
    for layer in device.layers:
        if not layer.step.is_urgent:
            assert not any(claim.awaits_first_token for claim in layer.claims.values())


@settings(max_examples=60, deadline=None)
@given(devices)
def test_the_device_never_idles_and_all_jobs_end(device: SharedDevice) -> None:
    """`run` itself fails where there is no turn though there is work."""
    device.run(20.0)
    assert set(device.ended_s) == set(device.jobs)
    ran_s = sum(layer.step.layer_s for layer in device.layers)
    assert ran_s + device.idle_s == pytest.approx(device.now_s)


@settings(max_examples=60, deadline=None)
@given(devices)
def test_steps_do_not_pass_each_other_to_and_fro(device: SharedDevice) -> None:
    device.run(20.0)
    urgent = [layer for layer in device.layers if layer.step.is_urgent]
    switches = sum(
        one.step is not other.step and one.step.next_layer == one.step.num_layers
        for one, other in zip(urgent, urgent[1:], strict=False)
    )
    # Each step is begun once, and each that was parked is gone on with once for whoever passed it.
    num_steps = len({id(layer.step) for layer in urgent})
    assert switches <= 2 * num_steps


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=8), st.integers(1, 12))
def test_all_are_in_time_where_any_order_is(all_jobs: list[Job], num_layers: int) -> None:
    """Of jobs that are all there at once the order by due times is the best there is."""
    together = [
        Job(each.model, 0.0, each.step_s, 2 * each.slack_s, each.is_first) for each in all_jobs
    ]
    device = SharedDevice(list(dict.fromkeys(together)), num_layers=num_layers)
    ends_s, best_s = 0.0, -inf
    for job in sorted(device.jobs, key=lambda job: job.due_s):
        ends_s += job.step_s
        best_s = max(best_s, ends_s - job.due_s)
    device.run(20.0)
    late_s = max(ended_s - job.due_s for job, ended_s in device.ended_s.items())
    assert best_s > 0.0 or late_s <= EARLY


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["d", "e", "f"]), st.floats(0.02, 2.0), min_size=2),
    st.booleans(),
)
def test_no_best_effort_model_starves(backlogs: dict[str, float], has_company: bool) -> None:
    """A latency-sensitive model that needs half of the device runs beside them, or none does."""
    chats = [Job("a", 0.05 * number, 0.02, 0.03) for number in range(800)]
    device = SharedDevice(chats if has_company else [], dict(backlogs), num_layers=8)
    device.run(40.0)
    served_s = dict.fromkeys(backlogs, 0.0)
    for layer in device.layers:
        if not layer.step.is_urgent:
            served_s[layer.step.model] += layer.step.layer_s
    longest_s = max(backlogs.values())
    assert max(served_s.values()) - min(served_s.values()) <= 2 * longest_s
    assert sum(served_s.values()) > (15.0 if has_company else 39.0)


def test_background_layers_fill_the_gaps_and_nobody_is_late() -> None:
    """A step of half a second runs in gaps of thirty milliseconds."""
    chats = [Job("a", 0.05 * number, 0.02, 0.03) for number in range(40)]
    device = SharedDevice(chats, {"b": 0.16}, num_layers=16)
    device.run(2.0)
    late_s = [ended_s - job.due_s for job, ended_s in device.ended_s.items()]
    assert max(late_s) <= EARLY
    background_s_ran = sum(x.step.layer_s for x in device.layers if not x.step.is_urgent)
    # All but what the chats take, and less than a layer in each gap.
    assert background_s_ran > 2.0 - 40 * (0.02 + 0.01)
    assert device.num_parked > 10


def test_a_first_token_does_not_wait_for_best_effort_rows_of_another_model() -> None:
    chat = Job("a", 0.0, 0.01, 0.5)
    newcomer = Job("b", 0.1005, 0.05, 5.0, is_first=True)
    device = SharedDevice([chat, newcomer], riders={"a": 0.4}, num_layers=40)
    device.run(1.0)
    assert device.num_parked == 1
    began_s = next(layer.began_s for layer in device.layers if layer.step.model == "b")
    assert began_s - newcomer.arrival_s <= 0.41 / 40
    assert device.ended_s[chat] <= chat.due_s


def test_it_waits_where_the_step_would_come_late_by_it() -> None:
    chat = Job("a", 0.0, 0.01, 0.41)
    newcomer = Job("b", 0.1005, 0.05, 5.0, is_first=True)
    device = SharedDevice([chat, newcomer], riders={"a": 0.4}, num_layers=40)
    device.run(1.0)
    assert device.num_parked == 0


def test_where_nothing_is_known_of_times_a_mixed_step_stands_back_once() -> None:
    step = StandingStep("a", make_plan(ls_s=1.0, be_s=1.0), 4)
    step.plan = make_plan(ls_s=1e-300, be_s=1e-300)
    assert gives_way(step, Claim(True), 0.0)
    step.was_passed = True
    assert not gives_way(step, Claim(True), 0.0)


def test_a_step_without_best_effort_rows_gives_way_only_to_what_would_come_late() -> None:
    step = begun("a", make_plan(ls_s=0.1), 10, Claim(False, 0.5))
    assert not gives_way(step, Claim(True, prompts_begin_by_s=0.2), 0.0)
    assert gives_way(step, Claim(True, prompts_begin_by_s=0.05), 0.0)
    # Due before it would be this step.
    hurried = begun("a", make_plan(ls_s=0.1), 10, Claim(False, 0.0))
    assert not gives_way(hurried, Claim(True, prompts_begin_by_s=0.05, step_s=0.2), 0.0)


def test_a_waiting_request_makes_its_models_step_as_urgent_as_it_is() -> None:
    step = begun("a", make_plan(ls_s=0.1), 10, Claim(False, 0.5))
    other = Claim(False, 0.05, step_s=0.01)
    assert stands_back(step, {"b": other}, [], 0.0)
    own = Claim(True, prompts_begin_by_s=0.01, step_s=0.01)
    assert not stands_back(step, {"a": own, "b": other}, [], 0.0)


def test_time_for_others_is_reckoned_over_all_that_are_due() -> None:
    claims = [Claim(False, 0.03, step_s=0.02), Claim(False, 0.035, step_s=0.02)]
    assert spare_s(claims, 0.0) == pytest.approx(0.015)
    assert spare_s([], 0.0) == inf
    prompt = Claim(False, inf, 0.001)
    assert background_s(
        dict(zip("abc", [*claims, prompt], strict=True)), 0.0, "d"
    ) == pytest.approx(0.015)
    assert background_s({"a": Claim(True)}, 0.0, "b") == -inf


def test_best_effort_work_leaves_decodes_their_lead_and_nobody_else_is_held_up_by_it() -> None:
    claim = Claim(False, 0.03, step_s=0.02, lead_s=0.01)
    assert spare_s([claim], 0.0) == pytest.approx(0.02)
    assert background_s({"a": claim}, 0.0, "b") == pytest.approx(0.02)
    assert background_s({"a": claim}, 0.0, "a") == pytest.approx(0.03)
    # Prompts have none.
    beside_prompt = claim._replace(prompts_begin_by_s=0.015)
    assert spare_s([beside_prompt], 0.0) == pytest.approx(0.015)
    assert background_s({"a": beside_prompt}, 0.0, "b") == pytest.approx(0.02)
    assert not claim.is_hurried(0.025)
    assert claim.due_s == pytest.approx(0.05)
    background = begun("b", make_plan(be_s=0.1), 10, None)
    assert not stands_back(background, {"a": claim}, [], 0.0099)
    assert stands_back(background, {"a": claim}, [], 0.0101)
    urgent = begun("b", make_plan(ls_s=0.1), 10, Claim(False, 0.5))
    assert not stands_back(urgent, {"a": claim._replace(decodes_begin_by_s=0.2)}, [], 0.09)
