"""Which model steps next, as tables of (demands -> turns)."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler import ModelDemand, ModelTurns

LS = ModelDemand(True, True, False, 64)
FIRST = ModelDemand(True, True, True, 64)
BE = ModelDemand(False, True, False, 64)
IDLE = ModelDemand(False, False, False, 64)


def turns(demands: dict[str, ModelDemand], count: int) -> list[tuple[str, int | None]]:
    model_turns = ModelTurns(list(demands))
    taken = [model_turns.next(demands) for _ in range(count)]
    return [(turn.model, turn.best_effort_tokens) for turn in taken if turn is not None]


def test_nobody_has_work() -> None:
    assert turns({"a": IDLE, "b": IDLE}, 2) == []


def test_best_effort_models_alternate_freely() -> None:
    assert turns({"a": BE, "b": BE, "c": IDLE}, 4) == [("a", None), ("b", None)] * 2


def test_latency_sensitive_models_alternate() -> None:
    assert turns({"a": LS, "b": LS}, 4) == [("a", None), ("b", None)] * 2


def test_a_best_effort_model_gets_a_small_step_after_each_round() -> None:
    expected = [("a", None), ("b", None), ("c", 64)] * 2
    assert turns({"a": LS, "b": LS, "c": BE}, 6) == expected


def test_best_effort_models_take_turns_beside_latency_sensitive_ones() -> None:
    assert turns({"a": LS, "b": BE, "c": BE}, 4) == [("a", None), ("b", 64), ("a", None), ("c", 64)]


def test_nobody_overtakes_a_first_token() -> None:
    assert turns({"a": FIRST, "b": BE}, 3) == [("a", None)] * 3


@given(st.lists(st.sampled_from([LS, FIRST, BE, IDLE]), min_size=1, max_size=5))
def test_every_latency_sensitive_model_gets_its_turn(states: list[ModelDemand]) -> None:
    demands = {str(index): state for index, state in enumerate(states)}
    taken = {model for model, _ in turns(demands, 3 * len(states))}
    wanted = {name for name, demand in demands.items() if demand.latency_sensitive}
    assert wanted <= taken
    assert not any(demands[name] is IDLE for name in taken)
