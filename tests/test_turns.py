"""Which model steps next, as tables of (demands -> turns)."""

from hypothesis import given
from hypothesis import strategies as st
from interleaving_builders import make_plan

from scheduler import Claim, ModelDemand, ModelTurns, StandingStep

LS = ModelDemand(Claim(False), True, 64)
FIRST = ModelDemand(Claim(True), True, 64)
BE = ModelDemand(None, True, 64)
IDLE = ModelDemand(None, False, 64)


def due(begin_by_s: float, step_s: float = 0.01) -> ModelDemand:
    return ModelDemand(Claim(False, begin_by_s, step_s=step_s), True, 64, num_layers=10)


def turns(demands: dict[str, ModelDemand], count: int) -> list[tuple[str, int | None]]:
    model_turns = ModelTurns()
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


def test_who_is_due_first_goes_first() -> None:
    assert turns({"a": due(0.3), "b": due(0.2), "c": due(0.25)}, 1) == [("b", None)]


def test_those_that_are_late_take_turns() -> None:
    """However late one of them is: it would else keep the others from the device."""
    demands = {"a": due(-9.0), "b": due(-0.1), "c": due(0.2)}
    assert turns(demands, 4) == [("a", None), ("b", None)] * 2


def test_a_step_in_a_gap_is_so_large_that_half_the_gap_holds_a_layer() -> None:
    model_turns = ModelTurns()
    demands = {"a": due(0.04), "b": ModelDemand(None, True, 64, num_layers=10)}
    first, second = (model_turns.next(demands) for _ in range(2))
    assert first is not None and first.model == "a"
    assert second is not None and (second.model, second.best_effort_tokens) == ("b", None)
    assert second.best_effort_s == 0.5 * 0.04 * 10


def test_a_gap_leaves_time_for_all_that_are_due_at_once() -> None:
    model_turns = ModelTurns()
    demands = {"a": due(0.03, 0.02), "b": due(0.03, 0.02), "c": BE}
    taken = [model_turns.next(demands) for _ in range(3)]
    # One of the two has to wait for the other: only 10 ms are left.
    assert taken[2] is not None and taken[2].model == "c"
    assert abs(taken[2].best_effort_s - 0.5 * 0.01) < 1e-9


def test_best_effort_rows_of_a_step_take_what_others_can_spare() -> None:
    turn = ModelTurns().next({"a": due(0.01), "b": due(0.07)})
    assert turn is not None and (turn.model, turn.best_effort_s) == ("a", 0.07)


def test_models_come_and_go() -> None:
    model_turns = ModelTurns()

    def next_of(*names: str) -> str:
        turn = model_turns.next(dict.fromkeys(names, LS))
        assert turn is not None
        return turn.model

    assert next_of("a", "b") == "a"
    assert next_of("a", "b", "c") == "b"
    assert next_of("a", "c") == "a"
    assert next_of("a", "c") == "c"
    assert next_of("b", "a") == "a"
    assert next_of("b", "a") == "b"


def test_least_served_best_effort_model_is_next() -> None:
    model_turns = ModelTurns()
    demands = {"large": BE, "small": BE}
    served = []
    for _ in range(9):
        turn = model_turns.next(demands)
        assert turn is not None
        served.append(turn.model)
        model_turns.note_begun(make_plan(be_s=0.4 if turn.model == "large" else 0.1), turn.model)
    assert served.count("large") == 2


def test_who_comes_back_has_no_credit() -> None:
    model_turns = ModelTurns()
    both = {"a": BE, "b": BE}
    for _ in range(20):
        assert model_turns.next({"a": BE, "b": IDLE}) is not None
        model_turns.note_begun(make_plan(be_s=1.0), "a")
    taken = []
    for _ in range(6):
        turn = model_turns.next(both)
        assert turn is not None
        taken.append(turn.model)
        model_turns.note_begun(make_plan(be_s=1.0), turn.model)
    assert taken.count("a") == 3


def test_riders_stay_out_of_every_other_step_while_others_had_less() -> None:
    model_turns = ModelTurns()
    demands = {"a": due(0.05), "b": BE}
    allowed = []
    for _ in range(12):
        turn = model_turns.next(demands)
        assert turn is not None
        if turn.model == "a":
            allowed.append(turn.best_effort_tokens)
            if turn.best_effort_tokens is None:
                model_turns.note_begun(make_plan(ls_s=0.01, be_s=0.2), "a")
        else:
            model_turns.note_begun(make_plan(be_s=0.001), "b")
    assert allowed == [None, None, 0, None, 0, None]


def test_a_parked_background_step_goes_on_in_each_gap() -> None:
    model_turns = ModelTurns()
    background = StandingStep("b", make_plan(be_s=0.1), num_layers=10)
    demands = {"a": due(0.05), "b": BE}
    turn = model_turns.next(demands, [background], 0.0)
    assert turn is not None and turn.resumes is background
    turn = model_turns.next(demands, [background], 0.045)
    assert turn is not None and (turn.model, turn.resumes) == ("a", None)


def test_own_requests_overtake_a_background_step_alone() -> None:
    background = StandingStep("a", make_plan(be_s=0.1), num_layers=10)
    turn = ModelTurns().next({"a": FIRST}, [background], 0.0)
    assert turn is not None and (turn.resumes, turn.latency_sensitive_only) == (None, True)


@given(st.lists(st.sampled_from([LS, FIRST, BE, IDLE]), min_size=1, max_size=5))
def test_every_latency_sensitive_model_gets_its_turn(states: list[ModelDemand]) -> None:
    demands = {str(index): state for index, state in enumerate(states)}
    taken = {model for model, _ in turns(demands, 3 * len(states))}
    wanted = {name for name, demand in demands.items() if demand.claim is not None}
    assert wanted <= taken
    assert not any(demands[name] is IDLE for name in taken)
