"""Schedulers that share one budget: whatever happens, nobody has what another one has."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from omniserve.engine.kv_arbiter import KvArbiter
from omniserve.errors import ConfigError
from omniserve.settings import ModelSettings
from scheduler import Objectives, Request, Scheduler, SchedulerSettings, ServiceClass, StepResult
from scheduler.kv_memory import KvDemand, KvMemory

BLOCK_SIZE = 4
BUDGET = 960
LS, BE = ServiceClass.LATENCY_SENSITIVE, ServiceClass.BEST_EFFORT


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Model:
    """A scheduler without an engine; `pages` are the extents that memory stands behind."""

    name: str
    block_bytes: int
    extent_blocks: int = 1
    num_blocks: int = 24
    max_model_len: int = 25
    pages: set[int] = field(default_factory=set)
    plans: list[Any] = field(default_factory=list)
    num_added: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            SchedulerSettings(
                num_blocks=self.num_blocks,
                block_size=BLOCK_SIZE,
                max_running_requests=6,
                max_step_tokens=16,
                best_effort_tokens_beside_ls=8,
                max_model_len=self.max_model_len,
                prefix_caching=True,
                extent_blocks=self.extent_blocks,
            )
        )

    @property
    def memory(self) -> KvMemory:
        return self.scheduler.memory

    @property
    def unit_bytes(self) -> int:
        return self.block_bytes * self.extent_blocks

    @property
    def granted_bytes(self) -> int:
        return self.memory.num_granted * self.block_bytes

    @property
    def running(self) -> list[Request]:
        return [each for queue in self.scheduler._queues.running.values() for each in queue]

    def give_way(self, num_extents: int) -> None:
        self.memory.give_way(num_extents)

    def reserve_extents(self, extents: Sequence[int]) -> None:
        assert not self.pages & set(extents), "granted twice"
        self.pages |= set(extents)

    def give_back_extents(self, extents: Sequence[int]) -> None:
        assert self.pages >= set(extents), "given back twice"
        self.pages -= set(extents)

    def settings(self, floor_bytes: int | None = None) -> ModelSettings:
        return ModelSettings(
            self.name,
            "nowhere",
            device_kv_bytes=self.num_blocks * self.block_bytes,
            device_kv_floor_bytes=floor_bytes,
        )

    def add(self, service_class: ServiceClass, prompt: Sequence[int], max_tokens: int) -> str:
        self.num_added += 1
        request_id = f"{self.name}{self.num_added}"
        objectives = Objectives(1.0, 0.1) if service_class is LS else None
        tokens = array("q", prompt)
        self.scheduler.add(
            Request(request_id, service_class, "t", 0.0, tokens, max_tokens, objectives)
        )
        return request_id

    def begin(self, *, latency_sensitive_only: bool = False) -> bool:
        plan = self.scheduler.schedule(latency_sensitive_only=latency_sensitive_only)
        self.scheduler.take_copies()
        if plan is None:
            return False
        for rows in plan.rows:
            for block_id in self.scheduler._queues.by_id[rows.request_id].block_ids:
                assert block_id // self.extent_blocks in self.pages, "memory that is not there"
        self.plans.append(plan)
        return True

    def complete(self) -> None:
        plan = self.plans.pop(0)
        sampled = {rows.request_id: 7 for rows in plan.rows if rows.samples}
        self.scheduler.complete(plan, StepResult(sampled))

    def drop_standing(self) -> bool:
        """As an engine does with a step that stands; here with the last one without urgent rows."""
        if not self.plans or self.plans[-1].has_latency_sensitive:
            return False
        if not self.memory.is_awaited(self.plans[-1]):
            return False
        self.scheduler.drop(self.plans.pop())
        return True

    def step(self) -> bool:
        if self.begin():
            self.complete()
            return True
        return False


def add_to(arbiter: KvArbiter, model: Model, floor_bytes: int | None = None) -> None:
    arbiter.expect(model.settings(floor_bytes))
    num_longest = -(-model.max_model_len // BLOCK_SIZE)
    arbiter.add(model.name, model, model.block_bytes, model.num_blocks, num_longest)


def make_pair(floors: tuple[int, int] = (240, 240)) -> tuple[KvArbiter, Clock, Model, Model]:
    clock = Clock()
    arbiter = KvArbiter(BUDGET, clock)
    models = Model("a", 40), Model("b", 40)
    for model, floor_bytes in zip(models, floors, strict=True):
        add_to(arbiter, model, floor_bytes)
    return arbiter, clock, *models


def run(arbiter: KvArbiter, clock: Clock, *models: Model, num_steps: int = 1) -> None:
    for _ in range(num_steps):
        clock.now_s += 0.02
        arbiter.balance()
        arbiter.check_integrity()
        for model in models:
            model.step()


def fill(arbiter: KvArbiter, clock: Clock, model: Model) -> None:
    """With best-effort requests until they hold everything."""
    for number in range(6):
        model.add(BE, [number] * 14, 10)
    run(arbiter, clock, model, num_steps=8)
    assert model.granted_bytes == BUDGET


def test_an_urgent_request_gets_memory_of_best_effort_ones_before_its_first_plan() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    b.add(LS, [1] * 20, 4)
    arbiter.balance()
    assert b.begin(), "the very next plan of the model has it"
    assert b.granted_bytes >= 5 * 40
    assert a.scheduler.counts.num_preemptions > 0
    stats = arbiter.stats("b")
    assert stats is not None and stats.num_moves_in == 1 and sum(stats.wait_counts) == 1


def test_requests_in_flight_let_go_when_their_plan_is_complete_and_get_no_rows_till_then() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    assert a.begin()
    running = {rows.request_id for rows in a.plans[0].rows}
    b.add(LS, [1] * 20, 4)
    arbiter.balance()
    assert not b.begin()
    assert a.begin() is False or running - {rows.request_id for rows in a.plans[1].rows}
    while a.plans:
        a.complete()
    arbiter.balance()
    assert b.begin()


def test_a_step_that_stands_is_dropped_for_a_latency_sensitive_request_of_another_model() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    assert a.begin() and not a.plans[0].has_latency_sensitive
    b.add(LS, [1] * 20, 4)
    asked: list[str] = []

    def drop_standing(model: str) -> bool:
        asked.append(model)
        return {"a": a, "b": b}[model].drop_standing()

    arbiter.balance(drop_standing)
    a.scheduler.check_integrity()
    assert asked == ["a"] and not a.plans
    assert b.begin(), "the very next plan of the model has it"
    b.complete()
    run(arbiter, clock, a, b, num_steps=200)
    assert not a.scheduler.has_unfinished and not b.scheduler.has_unfinished


def test_where_a_step_is_dropped_nobody_lets_go_of_more_than_is_wanted() -> None:
    """What others let go of before counts."""
    arbiter, clock, a, b = make_pair((0, 480))
    fill(arbiter, clock, a)
    for number in range(10, 13):
        name = a.add(LS, [number] * 16, 9)
        # While one step samples, another one is for others alone.
        a.scheduler._queues.by_id[name].needs_known_tokens = True
    for _ in range(5):
        a.step()
    assert a.begin(latency_sensitive_only=True)
    assert a.begin() and not a.plans[1].has_latency_sensitive
    a.complete()
    held = {each.request_id: len(each.block_ids) for each in a.running}
    assert held == {"a7": 6, "a8": 5, "a9": 5, "a2": 6}
    for number in range(2):
        b.add(LS, [number] * 20, 4)
    arbiter.balance(lambda name: name == "a" and a.drop_standing())
    assert not a.plans and (a.granted_bytes, b.granted_bytes) == (480, 480)
    assert [each.request_id for each in a.running] == ["a7", "a8"]
    run(arbiter, clock, a, b, num_steps=200)
    assert not a.scheduler.has_unfinished and not b.scheduler.has_unfinished


def test_a_request_that_was_to_let_go_goes_on_once_its_model_has_given_enough() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    assert a.begin()
    b.add(LS, [1] * 20, 4)
    arbiter.balance()
    withheld = dict(a.scheduler._preemptor.yielding)
    assert withheld
    # Others end meanwhile, so that it need not.
    for each in a.running:
        if each.request_id not in withheld:
            a.scheduler.abort(each.request_id)
    a.complete()
    arbiter.balance()
    assert b.begin()
    assert {each.request_id for each in a.running} == {*withheld}
    assert a.begin() and {rows.request_id for rows in a.plans[0].rows} >= {*withheld}


def test_amid_a_step_memory_moves_for_latency_sensitive_requests_alone() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    b.add(BE, [1] * 20, 4)
    clock.now_s += 1.0
    arbiter.hasten()
    assert a.granted_bytes == BUDGET
    b.add(LS, [1] * 20, 4)
    arbiter.hasten()
    assert b.begin(), "no step had to end before"


def test_memory_moves_however_long_it_takes_to_reckon_who_gets_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reckon = KvMemory.demand
    for move, service_class in (("balance", LS), ("balance", BE), ("hasten", LS)):
        arbiter, clock, a, b = make_pair()
        fill(arbiter, clock, a)
        b.add(service_class, [1] * 20, 4)
        clock.now_s += 1.0

        def take_long(self: KvMemory, clock: Clock = clock) -> KvDemand:
            clock.now_s += 0.02
            return reckon(self)

        with monkeypatch.context() as patched:
            patched.setattr(KvMemory, "demand", take_long)
            getattr(arbiter, move)()
        assert b.begin()
        b.complete()


def test_amid_a_step_two_thirds_of_the_time_are_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    arbiter, clock, a, b = make_pair((0, 0))
    fill(arbiter, clock, a)
    b.add(LS, [1] * 20, 4)
    reckon, begun_s = KvMemory.demand, []

    def take_long(self: KvMemory) -> KvDemand:
        begun_s.append(clock.now_s)
        clock.now_s += 0.02
        return reckon(self)

    monkeypatch.setattr(KvMemory, "demand", take_long)
    for _ in range(100):
        clock.now_s += 0.01
        arbiter.hasten()
    assert 3 < len(begun_s)
    assert all(
        later - before >= 0.1 for before, later in zip(begun_s[:-2:2], begun_s[2::2], strict=True)
    )


def test_no_step_is_dropped_for_best_effort_requests() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    assert a.begin()
    b.add(BE, [1] * 20, 4)
    clock.now_s += 1.0

    def drop_standing(model: str) -> bool:
        raise AssertionError(f"{model} is asked to drop a step")

    arbiter.balance(drop_standing)
    assert a.scheduler.memory.is_awaited(a.plans[0])
    a.complete()
    arbiter.balance(drop_standing)
    assert b.begin()


def test_nobody_has_the_memory_of_a_leaving_model_before_it_is_gone() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    arbiter.retire("a")
    b.add(LS, [1] * 20, 4)
    run(arbiter, clock, b, num_steps=5)
    assert b.granted_bytes == 0 and arbiter.stats("a") is None
    arbiter.remove("a")
    run(arbiter, clock, b, num_steps=10)
    assert not b.scheduler.has_unfinished


def rest(arbiter: KvArbiter, model: Model) -> None:
    arbiter.retire(model.name)
    arbiter.rest(model.name)


def test_urgent_work_leaves_the_floor_of_a_model_that_rests_and_others_may_have_it() -> None:
    arbiter, clock, a, b = make_pair()
    rest(arbiter, b)
    assert arbiter.stats("b") is None
    for number in range(6):
        a.add(LS, [number] * 14, 10)
    arbiter.balance()
    assert a.granted_bytes == BUDGET - 240
    run(arbiter, clock, a, num_steps=100)
    assert not a.scheduler.has_unfinished
    fill(arbiter, clock, a)
    woken = Model("b", 40)
    add_to(arbiter, woken)
    woken.add(LS, [1] * 20, 4)
    arbiter.balance()
    assert woken.begin(), "its floor is there for its very first plan"
    while woken.plans:
        woken.complete()


def test_a_floor_is_for_all_once_the_model_that_rested_is_gone() -> None:
    arbiter, _, _, b = make_pair((400, 400))
    assert arbiter.budget is not None and arbiter.budget.common_bytes == 160
    rest(arbiter, b)
    with pytest.raises(ConfigError, match="device_kv_floor_bytes"):
        arbiter.expect(Model("c", 40).settings(200))
    arbiter.remove("b")
    assert arbiter.budget.common_bytes == 560
    # Of models that were never there nothing is kept.
    arbiter.rest("nowhere")
    arbiter.balance()


def test_room_is_kept_for_models_that_begin_asleep() -> None:
    arbiter = KvArbiter(BUDGET, Clock())
    arbiter.expect_later(Model("b", 40).settings(240), 300)
    assert arbiter.budget is not None and arbiter.budget.common_bytes == BUDGET - 240
    with pytest.raises(ConfigError, match="would be left to b, whose longest request needs 300"):
        arbiter.expect(Model("c", 40).settings(700))
    arbiter.balance()
    add_to(arbiter, Model("b", 40))
    assert arbiter.budget.floor_bytes("b") == 240


def test_extents_that_many_hold_in_part_are_vacated_at_once() -> None:
    """Those that let go come back into what is free in extents that others hold: to ask the
    youngest again and again would free none."""
    clock = Clock()
    arbiter = KvArbiter(1600, clock)
    a, b = (Model(name, 10, 4, num_blocks=160, max_model_len=200) for name in "ab")
    add_to(arbiter, a, 0)
    add_to(arbiter, b, 800)
    for number in range(6):
        a.add(BE, [number] * 3, 190)
    run(arbiter, clock, a, num_steps=60)
    held_by = [{block_id // 4 for block_id in each.block_ids} for each in a.running]
    assert sum(map(len, held_by)) > 2 * len(set.union(*held_by)), "they grow side by side"
    for number in range(3):
        b.add(LS, [number] * 150, 40)
    arbiter.balance()
    assert b.granted_bytes >= 3 * 38 * 10
    before = a.scheduler.counts.num_preemptions
    run(arbiter, clock, a, b, num_steps=10)
    assert a.scheduler.counts.num_preemptions == before


def test_memory_comes_back_when_the_load_does() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    urgent = [b.add(LS, [number] * 20, 4) for number in range(3)]
    run(arbiter, clock, a, b, num_steps=20)
    assert not b.scheduler.has_unfinished and urgent
    run(arbiter, clock, a, b, num_steps=100)
    assert not a.scheduler.has_unfinished


def test_a_model_is_told_what_it_would_be_granted_at_once() -> None:
    """Its latency-sensitive requests have nothing of others' floors."""
    arbiter, clock, a, b = make_pair((240, 400))

    def spare_bytes(model: Model) -> int:
        return model.scheduler._residency.num_spare_blocks * model.block_bytes

    a.add(BE, [1] * 14, 10)
    run(arbiter, clock, a)
    assert 0 < a.granted_bytes < 400
    assert spare_bytes(a) == BUDGET - 400 - a.granted_bytes
    assert spare_bytes(b) == min(BUDGET - a.granted_bytes, BUDGET - 240)
    fill(arbiter, clock, a)
    arbiter.balance()
    assert (spare_bytes(a), spare_bytes(b)) == (0, 0)


def test_a_model_without_work_gives_all_back_in_the_end() -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    run(arbiter, clock, a, b, num_steps=100)
    clock.now_s += 5
    arbiter.balance()
    cached = a.scheduler.counts.num_cached_blocks
    assert a.granted_bytes == cached * 40 > 0
    clock.now_s += 100
    arbiter.balance()
    assert a.granted_bytes == 0 and a.pages == set()


def test_what_there_was_no_time_to_give_back_goes_before_the_next_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arbiter, clock, a, b = make_pair()
    fill(arbiter, clock, a)
    run(arbiter, clock, a, b, num_steps=100)
    clock.now_s += 100.0
    give_back = a.give_back_extents

    def take_long(extents: Sequence[int]) -> None:
        clock.now_s += 0.01
        give_back(extents)

    monkeypatch.setattr(a, "give_back_extents", take_long)
    monkeypatch.setattr("omniserve.engine.kv_arbiter._PIECE_BYTES", 4 * 40)
    num_granted = [a.granted_bytes // 40]
    while num_granted[-1] and len(num_granted) < 10:
        arbiter.balance()
        num_granted.append(a.granted_bytes // 40)
    assert num_granted == [23, 19, 15, 11, 7, 3, 0]


def test_two_that_need_more_than_there_is_both_end() -> None:
    """Each holds what the other one needs; the younger one begins anew."""
    for service_class in ServiceClass:
        arbiter, clock, a, b = make_pair((0, 0))
        for model in (a, b):
            for number in range(3):
                model.add(service_class, [number] * 12, 13)
        run(arbiter, clock, a, b, num_steps=300)
        assert not a.scheduler.has_unfinished and not b.scheduler.has_unfinished


def test_a_model_whose_floor_does_not_fit_is_refused_and_changes_nothing() -> None:
    arbiter, clock, a, b = make_pair((400, 240))
    with pytest.raises(ConfigError, match=r"960 bytes .* device_kv_floor_bytes .*a 400.*c 400"):
        arbiter.expect(Model("c", 40).settings(400))
    with pytest.raises(ConfigError, match="240 of 960 bytes would be left to b, whose longest"):
        arbiter.expect(Model("c", 40).settings(320))
    arbiter.expect(Model("c", 40).settings(40))
    arbiter.remove("c")
    fill(arbiter, clock, a)


def test_floors_that_nobody_gave_are_half_of_an_even_share() -> None:
    arbiter = KvArbiter(BUDGET, Clock())
    arbiter.expect(Model("a", 40).settings(), Model("b", 8).settings())
    assert arbiter.budget is not None
    assert arbiter.budget.floor_bytes("a") == BUDGET // 4
    assert arbiter.budget.floor_bytes("b") == 24 * 8, "never more than it may have"


def test_without_a_budget_nothing_is_asked() -> None:
    arbiter = KvArbiter(None)
    model = Model("a", 40)
    add_to(arbiter, model)
    arbiter.balance()
    assert model.granted_bytes == 0 and arbiter.stats("a") is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([(1, 40), (2, 24), (3, 40)]), min_size=2, max_size=3), st.data())
def test_everything_ends(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Any load of models with blocks of several sizes, also where extents are held in part."""
    clock = Clock()
    arbiter = KvArbiter(BUDGET, clock)
    models = [
        Model(f"m{place}_", block_bytes, extent_blocks)
        for place, (extent_blocks, block_bytes) in enumerate(shapes)
    ]
    for model in models:
        add_to(arbiter, model, data.draw(st.sampled_from([0, 120, 240])))
    for _ in range(data.draw(st.integers(1, 12))):
        model = data.draw(st.sampled_from(models))
        length = data.draw(st.integers(1, 18))
        model.add(data.draw(st.sampled_from([LS, BE])), [length] * length, 6)
    run(arbiter, clock, *models, num_steps=250)
    assert not any(model.scheduler.has_unfinished for model in models)


class Sharing(RuleBasedStateMachine):
    """Models come, go and work, with plans in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.arbiter = KvArbiter(BUDGET, self.clock)
        self.models: list[Model] = []
        self.leaving: list[Model] = []
        self.resting: list[Model] = []
        self.num_models = 0

    @precondition(lambda self: len(self.models) < 4)
    @rule(shape=st.sampled_from([(1, 40), (2, 24), (4, 10)]), floor=st.sampled_from([0, 160, 400]))
    def load(self, shape: tuple[int, int], floor: int) -> None:
        extent_blocks, block_bytes = shape
        self.num_models += 1
        model = Model(f"m{self.num_models}_", block_bytes, extent_blocks, max_model_len=12)
        try:
            add_to(self.arbiter, model, floor)
        except ConfigError:
            return
        self.models.append(model)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.models))
        self.models.remove(model)
        self.leaving.append(model)
        self.arbiter.retire(model.name)

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def be_gone(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.leaving))
        self.leaving.remove(model)
        self.arbiter.remove(model.name)

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def fall_asleep(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.leaving))
        self.leaving.remove(model)
        self.resting.append(model)
        self.arbiter.rest(model.name)

    @precondition(lambda self: self.resting)
    @rule(data=st.data(), wakes=st.booleans())
    def wake_or_drop(self, data: st.DataObject, wakes: bool) -> None:
        asleep = data.draw(st.sampled_from(self.resting))
        self.resting.remove(asleep)
        if not wakes:
            self.arbiter.remove(asleep.name)
            return
        model = Model(asleep.name, asleep.block_bytes, asleep.extent_blocks, max_model_len=12)
        add_to(self.arbiter, model)
        self.models.append(model)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), cls=st.sampled_from([LS, BE]), length=st.integers(1, 9))
    def add(self, data: st.DataObject, cls: ServiceClass, length: int) -> None:
        data.draw(st.sampled_from(self.models)).add(cls, [length] * length, 3)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.models))
        if len(model.plans) < 2:
            model.begin()

    @precondition(lambda self: any(model.plans for model in self.models))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([model for model in self.models if model.plans])).complete()

    @rule(
        seconds=st.sampled_from([0.001, 0.02, 2.0, 100.0]),
        drops=st.booleans(),
        is_amid_step=st.booleans(),
    )
    def balance(self, seconds: float, drops: bool, is_amid_step: bool) -> None:
        self.clock.now_s += seconds
        by_name = {model.name: model for model in self.models}

        def drop_standing(name: str) -> bool:
            return drops and by_name[name].drop_standing()

        if is_amid_step:
            self.arbiter.hasten(drop_standing)
        else:
            self.arbiter.balance(drop_standing)

    @invariant()
    def agrees(self) -> None:
        self.arbiter.check_integrity()
        everybody = (*self.models, *self.leaving)
        assert sum(model.granted_bytes for model in everybody) <= BUDGET
        for model in self.models:
            model.scheduler.check_integrity()
            assert len(model.pages) * model.unit_bytes == model.granted_bytes


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
