"""How a KV budget is shared out: what must hold for any models and any budget."""

from dataclasses import replace
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.kv_grants import KEEPS_CACHE_S, KEEPS_UNUSED_S, KvClaims, share_out

MIB = 1 << 20


def claims(**fields: float) -> KvClaims:
    """A model without work, of units of a MiB."""
    idle: dict[str, float] = dict.fromkeys(
        ("floor", "granted", "cached", "urgent_running", "urgent_waiting"), 0
    )
    idle |= {"patient_running": 0, "patient_waiting": 0, "unit": MIB, "most": 1 << 40}
    return KvClaims(**(idle | fields))  # type: ignore[arg-type]


@st.composite
def budgets(draw: st.DrawFn) -> tuple[int, dict[str, KvClaims]]:
    """Models that together have no more than the budget, of which floors are no more either."""
    budget = draw(st.integers(0, 400))
    left_of_floors = left_of_grants = budget
    models = {}
    for name in "abcd"[: draw(st.integers(1, 4))]:
        unit = draw(st.sampled_from([1, 2, 3, 7]))
        floor = draw(st.integers(0, left_of_floors // unit)) * unit
        granted = draw(st.integers(0, left_of_grants // unit)) * unit
        left_of_floors, left_of_grants = left_of_floors - floor, left_of_grants - granted
        cached = draw(st.integers(0, granted))
        num_bytes = st.integers(0, 300)
        wants = [draw(num_bytes) for _ in range(4)]
        models[name] = KvClaims(
            unit=unit,
            most=max(floor, draw(st.integers(1, 150)) * unit),
            floor=floor,
            granted=granted,
            cached=cached,
            urgent_running=wants[0],
            urgent_waiting=wants[1],
            patient_running=wants[2],
            patient_waiting=wants[3],
            urgent_since_s=draw(st.floats(0, 9)),
            patient_since_s=draw(st.floats(0, 9)),
            # Whoever wants anything has work.
            idle_s=0.0 if any(wants) else draw(st.sampled_from([0.0, 2.0, 100.0])),
        )
    return budget, models


@settings(max_examples=300)
@given(budgets())
def test_it_is_whole_units_within_the_budget_and_what_may_be_had(
    case: tuple[int, dict[str, KvClaims]],
) -> None:
    budget, models = case
    given_bytes = share_out(budget, models)
    assert given_bytes.keys() == models.keys()
    assert sum(given_bytes.values()) <= budget
    for name, model in models.items():
        assert 0 <= given_bytes[name] <= max(model.most, model.floor)
        assert given_bytes[name] % model.unit == 0


@settings(max_examples=300)
@given(budgets())
def test_a_floor_is_had_by_whoever_wants_it(case: tuple[int, dict[str, KvClaims]]) -> None:
    budget, models = case
    given_bytes = share_out(budget, models)
    for name, model in models.items():
        assert given_bytes[name] >= min(model.floor, model.wanted, model.most)


@settings(max_examples=300)
@given(budgets())
def test_best_effort_work_has_more_than_its_floor_only_where_urgent_work_lacks_nothing_of_it(
    case: tuple[int, dict[str, KvClaims]],
) -> None:
    """Of what is no floor; floors of others are never urgent work's."""
    budget, models = case
    given_bytes = share_out(budget, models)
    common = budget - sum(model.floor for model in models.values())
    beyond = {
        name: max(0, min(model.urgent, model.most) - model.floor) for name, model in models.items()
    }
    # Units of several sizes may leave less than one of them over.
    slack = 2 * sum(model.unit for model in models.values())
    had = sum(
        min(beyond[name], max(0, given_bytes[name] - model.floor)) for name, model in models.items()
    )
    assert had >= min(common, sum(beyond.values())) - slack


@settings(max_examples=300)
@given(budgets())
def test_nothing_moves_twice_for_the_same_demand(
    case: tuple[int, dict[str, KvClaims]],
) -> None:
    """Once all have what they were given, and hold what they wanted, it stays as it is."""
    budget, models = case
    first = share_out(budget, models)
    settled = {}
    for name, model in models.items():
        held = min(first[name], model.urgent_running + model.patient_running)
        cached = min(model.cached, first[name] - held)
        settled[name] = replace(model, granted=first[name], cached=cached)
    second = share_out(budget, settled)
    third = share_out(
        budget, {name: replace(each, granted=second[name]) for name, each in settled.items()}
    )
    assert second == third


def test_urgent_work_of_one_goes_before_running_best_effort_work_of_another() -> None:
    models = {
        "busy": claims(granted=80 * MIB, patient_running=80 * MIB, floor=20 * MIB),
        "urgent": claims(granted=20 * MIB, urgent_waiting=70 * MIB, floor=20 * MIB),
    }
    assert share_out(100 * MIB, models) == {"busy": 30 * MIB, "urgent": 70 * MIB}


def test_urgent_work_leaves_the_floors_of_others_alone_though_nobody_wants_them() -> None:
    models = {
        "idle": claims(floor=40 * MIB, idle_s=inf),
        "urgent": claims(urgent_running=100 * MIB, floor=20 * MIB),
    }
    assert share_out(100 * MIB, models) == {"idle": 0, "urgent": 60 * MIB}


def test_best_effort_work_may_use_floors_that_nobody_wants() -> None:
    models = {
        "idle": claims(floor=40 * MIB, idle_s=inf),
        "busy": claims(patient_running=100 * MIB, floor=20 * MIB),
    }
    assert share_out(100 * MIB, models) == {"idle": 0, "busy": 100 * MIB}


def test_of_two_that_cannot_both_go_on_the_one_with_the_oldest_request_does() -> None:
    def models(ages: tuple[float, float]) -> dict[str, KvClaims]:
        return {
            name: claims(granted=50 * MIB, urgent_running=60 * MIB, urgent_since_s=age)
            for name, age in zip("ab", ages, strict=True)
        }

    assert share_out(100 * MIB, models((1.0, 2.0))) == {"a": 60 * MIB, "b": 40 * MIB}
    assert share_out(100 * MIB, models((2.0, 1.0))) == {"a": 40 * MIB, "b": 60 * MIB}


def test_waiting_best_effort_work_of_two_models_does_not_move_memory_for_a_little() -> None:
    def shares(a: int, b: int) -> tuple[int, int]:
        models = {
            name: claims(granted=mib * MIB, patient_running=20 * MIB, patient_waiting=500 * MIB)
            for name, mib in (("a", a), ("b", b))
        }
        given_bytes = share_out(100 * MIB, models)
        return given_bytes["a"] // MIB, given_bytes["b"] // MIB

    assert shares(54, 46) == (54, 46)
    a, b = shares(80, 20)
    assert abs(a - b) <= 100 // 8 + 1 and a + b >= 99


def test_prefixes_stay_until_someone_wants_the_room_or_for_a_while() -> None:
    lone = claims(granted=50 * MIB, cached=30 * MIB, idle_s=KEEPS_UNUSED_S)
    assert share_out(100 * MIB, {"a": lone}) == {"a": 30 * MIB}
    assert share_out(100 * MIB, {"a": replace(lone, idle_s=KEEPS_CACHE_S)}) == {"a": 0}
    busy = claims(patient_running=90 * MIB)
    assert share_out(100 * MIB, {"a": lone, "b": busy})["a"] <= 10 * MIB


def test_who_grows_gets_more_than_it_lacks_where_there_is_more() -> None:
    model = claims(granted=10 * MIB, patient_running=11 * MIB)
    assert share_out(320 * MIB, {"a": model}) == {"a": 21 * MIB}
    caching = replace(model, cached=4 * MIB)
    assert share_out(320 * MIB, {"a": caching}) == {"a": 25 * MIB}
