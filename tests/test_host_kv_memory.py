"""Offloaded requests of several models on one host memory: who gets how much, and who gives way."""

from dataclasses import replace

import pytest
from builders_scheduler import ROOMY, make_request
from host_sharing_builders import Clock, Sharer, make_arbiter, run
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_scheduler_piggyback_simulation import MOSTLY_BE, PATIENT, act, piggyback_settings
from test_scheduler_simulation import draw_request

from omniserve.engine.kv_arbiter import KvArbiter
from omniserve.errors import ConfigError
from omniserve.settings import ModelSettings, PiggybackSettings
from scheduler import PiggybackLimits
from scheduler.timeline import Event, Reason

BUDGET = 960
LIMITS = PiggybackLimits(
    num_lanes=16,
    max_lane_rows=16,
    max_lane_rows_beside_ls=4,
    max_resident_decodes=0,
    return_patience=1000,
)
HOSTING = replace(
    ROOMY, num_blocks=200, max_running_requests=16, max_step_tokens=256, piggyback=LIMITS
)


def make_pair(
    floors: tuple[int, int] = (240, 240), changes: PiggybackLimits = LIMITS
) -> tuple[KvArbiter, Clock, Sharer, Sharer]:
    """Each may have all of the budget: 24 blocks of 4 tokens."""
    clock = Clock()
    arbiter = make_arbiter(BUDGET, clock)
    chosen = replace(HOSTING, piggyback=changes)
    a, b = (
        Sharer(name, chosen, arbiter, num_blocks=24, block_bytes=40, floor_bytes=floor)
        for name, floor in zip("ab", floors, strict=True)
    )
    return arbiter, clock, a, b


def add(sharer: Sharer, count: int, prompt: int = 14, max_tokens: int = 16) -> list[str]:
    """Whose prompts share no block."""
    number = len(sharer.simulation.clients)
    names = [f"be{sharer.name}{place}" for place in range(number, number + count)]
    for place, name in enumerate(names, start=number):
        tokens = [place % 256, place // 256 % 256, *range(prompt)][:prompt]
        sharer.simulation.add(make_request(name, tokens, max_tokens=max_tokens))
    return names


def is_done(*sharers: Sharer) -> bool:
    return not any(sharer.scheduler.has_unfinished for sharer in sharers)


def test_a_busy_model_gets_all_and_an_idle_one_gives_it_back() -> None:
    arbiter, clock, a, b = make_pair()
    for busy, idle in ((a, b), (b, a), (a, b)):
        add(busy, 8)
        run(arbiter, clock, busy, idle, num_steps=8)
        assert busy.used_bytes > BUDGET // 2 and busy.granted_bytes == BUDGET
        run(arbiter, clock, busy, idle, num_steps=200)
        assert is_done(a, b)
    clock.now_s += 5
    run(arbiter, clock, a, b, num_steps=1)
    assert a.granted_bytes == a.blocks.num_cached_blocks * 40 > 0
    clock.now_s += 100
    run(arbiter, clock, a, b, num_steps=1)
    assert a.granted_bytes == b.granted_bytes == 0 and a.pages == b.pages == set()


def test_memory_is_there_before_anybody_has_to_leave_the_device() -> None:
    arbiter, clock, a, _ = make_pair(changes=replace(LIMITS, max_resident_decodes=None))
    add(a, 4)
    run(arbiter, clock, a, num_steps=3)
    assert a.scheduler.num_offloaded == 0 and a.used_bytes == 0
    assert a.granted_bytes >= 4 * 8 * 40 * 3 // 4
    a.scheduler.offload_allowed = False
    clock.now_s += 5
    run(arbiter, clock, a, num_steps=1)
    assert a.granted_bytes == 0, "who may not go there needs nothing"


def test_a_floor_comes_from_running_requests_between_two_of_their_tokens() -> None:
    arbiter, clock, a, b = make_pair((240, 240))
    add(a, 8, prompt=20)
    run(arbiter, clock, a, b, num_steps=6)
    assert a.granted_bytes == BUDGET and a.used_bytes > BUDGET - 240
    add(b, 2)
    run(arbiter, clock, a, b, num_steps=6)
    assert b.granted_bytes >= 240 and b.scheduler.num_offloaded > 0
    assert a.scheduler.counts.num_preemptions > 0
    run(arbiter, clock, a, b, num_steps=300)
    assert is_done(a, b)


def test_who_gives_way_goes_back_to_the_device_if_that_has_room() -> None:
    for max_resident, returns in ((None, True), (0, False)):
        limits = replace(LIMITS, max_resident_decodes=max_resident)
        arbiter, clock, a, _ = make_pair()
        add(a, 8, max_tokens=30)
        run(arbiter, clock, a, num_steps=6)
        a.scheduler._planner._returner._limits = limits
        youngest = list(a.scheduler._queues.offloaded)[-1].request_id
        a.give_way(3)
        # Until the token is there that it is amid of.
        for _ in range(4):
            a.step()
        entries = a.scheduler.explain(youngest)
        assert entries is not None
        events = [entry.event for entry in entries if entry.reason is Reason.OTHER_MODEL]
        assert events == [Event.RETURNED if returns else Event.PREEMPTED]


def test_others_running_requests_are_left_alone_for_a_while_only() -> None:
    arbiter, clock, a, b = make_pair((0, 0))
    add(a, 8, prompt=10, max_tokens=50)
    run(arbiter, clock, a, b, num_steps=4)
    assert a.used_bytes > BUDGET * 3 // 4
    # The device of this one is full, so who waits is held up.
    add(b, 30, prompt=10, max_tokens=50)
    run(arbiter, clock, a, b, num_steps=6, step_s=0.02)
    held = a.used_bytes
    assert b.granted_bytes <= BUDGET - held
    run(arbiter, clock, a, b, num_steps=12, step_s=1.0)
    assert abs(a.granted_bytes - b.granted_bytes) <= BUDGET // 4
    moves = [arbiter.stats(name) for name in "ab"]
    run(arbiter, clock, a, b, num_steps=3, step_s=1.0)
    after = [arbiter.stats(name) for name in "ab"]
    assert [each and each.num_moves_out for each in moves] == [
        each and each.num_moves_out for each in after
    ], "what is shared out stays"
    run(arbiter, clock, a, b, num_steps=1500)
    assert is_done(a, b)


def test_a_request_that_could_never_end_there_stays_on_the_device() -> None:
    arbiter, clock, a, _ = make_pair((240, 480))
    assert a.blocks.num_blocks == (BUDGET - 480) // 40
    add(a, 1, prompt=20, max_tokens=30)
    run(arbiter, clock, a, num_steps=10)
    assert a.scheduler.num_offloaded == 0
    arbiter.remove("b")
    assert a.blocks.num_blocks == 24
    run(arbiter, clock, a, num_steps=3)
    assert a.scheduler.num_offloaded == 1
    run(arbiter, clock, a, num_steps=60)
    assert is_done(a)


def test_who_became_too_long_for_its_model_goes_back_to_the_device() -> None:
    clock = Clock()
    arbiter = make_arbiter(BUDGET, clock)

    def make(name: str, floor_bytes: int) -> Sharer:
        return Sharer(
            name, HOSTING, arbiter, num_blocks=24, block_bytes=40, floor_bytes=floor_bytes
        )

    a = make("a", 120)
    add(a, 1, max_tokens=66)
    run(arbiter, clock, a, num_steps=6)
    assert a.scheduler.num_offloaded == 1 and a.blocks.num_blocks == 24
    # Its floor leaves the other one less than the request needs at its end.
    b = make("b", 600)
    assert a.blocks.num_blocks == 9
    for _ in range(60):
        if len(b.scheduler._queues.by_id) < 4:
            add(b, 4)
        run(arbiter, clock, a, b, num_steps=4)
        if is_done(a):
            break
    assert is_done(a) and not is_done(b)
    assert a.scheduler.counts.num_preemptions == 1


def test_a_floor_beside_those_that_are_there_is_refused_where_it_does_not_fit() -> None:
    arbiter, *_ = make_pair((480, 240))
    piggyback = PiggybackSettings(BUDGET, host_kv_floor_bytes=280)
    message = r"host\.kv_bytes: 960 .* piggyback\.host_kv_floor_bytes together \(a 480, .*c 280\)"
    with pytest.raises(ConfigError, match=message):
        arbiter.expect(ModelSettings("c", "nowhere", piggyback=piggyback))
    arbiter.expect(ModelSettings("d", "nowhere"))
    assert arbiter.budget is not None and arbiter.budget.common_bytes == BUDGET - 720


@settings(PATIENT, max_examples=80)
@given(data=st.data())
def test_every_request_gets_its_tokens_whatever_moves(data: st.DataObject) -> None:
    """Any load of models with blocks and extents of several sizes, failures of the host included;
    memory that was given back and is read is found out."""
    clock = Clock()
    arbiter = make_arbiter(BUDGET, clock)
    shapes = st.sampled_from([(1, 40), (2, 24), (3, 40), (1, 160)])
    sharers = []
    for name in "abc"[: data.draw(st.integers(2, 3))]:
        extent_blocks, block_bytes = data.draw(shapes)
        num_extents = data.draw(st.integers(1, 12))
        sharer = Sharer(
            name,
            data.draw(piggyback_settings()),
            arbiter,
            num_blocks=num_extents * extent_blocks,
            block_bytes=block_bytes,
            extent_blocks=extent_blocks,
            floor_bytes=data.draw(st.sampled_from([0, 160, 320])),
        )
        sharers.append(sharer)
        for _ in range(data.draw(st.integers(0, 4))):
            draw_request(data.draw, sharer.simulation, classes=MOSTLY_BE)
    for _ in range(data.draw(st.integers(5, 60))):
        if data.draw(st.booleans()):
            clock.now_s += data.draw(st.sampled_from([0.001, 0.02, 2.0, 100.0]))
            note("balance")
            arbiter.balance()
        act(data.draw, data.draw(st.sampled_from(sharers)).simulation, depth=2, overtakes=True)
        arbiter.check_integrity()
        assert sum(sharer.granted_bytes for sharer in sharers) <= BUDGET
        for sharer in sharers:
            sharer.check()
    for _ in range(4000):
        if is_done(*sharers) and not any(_is_busy(sharer) for sharer in sharers):
            break
        run(arbiter, clock, *sharers, num_steps=1)
    for sharer in sharers:
        sharer.simulation.drain(1)


def _is_busy(sharer: Sharer) -> bool:
    simulation = sharer.simulation
    host = simulation.host
    return bool(simulation.flights or simulation.overtaking or host.copies or host.lanes)


class Sharing(RuleBasedStateMachine):
    """Models come, go and work, and their floors are there when they are wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.arbiter = make_arbiter(BUDGET, self.clock)
        self.sharers: list[Sharer] = []
        self.leaving: list[Sharer] = []
        self.num_models = 0

    @precondition(lambda self: len(self.sharers) < 4)
    @rule(shape=st.sampled_from([(1, 40), (2, 24), (4, 10)]), floor=st.sampled_from([0, 160, 400]))
    def load(self, shape: tuple[int, int], floor: int) -> None:
        extent_blocks, block_bytes = shape
        self.num_models += 1
        try:
            sharer = Sharer(
                f"m{self.num_models}_",
                HOSTING,
                self.arbiter,
                num_blocks=24,
                block_bytes=block_bytes,
                extent_blocks=extent_blocks,
                floor_bytes=floor,
            )
        except ConfigError:
            return
        self.sharers.append(sharer)

    @precondition(lambda self: self.sharers)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        sharer = data.draw(st.sampled_from(self.sharers))
        self.sharers.remove(sharer)
        self.leaving.append(sharer)
        self.arbiter.retire(sharer.name)

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def be_gone(self, data: st.DataObject) -> None:
        sharer = data.draw(st.sampled_from(self.leaving))
        self.leaving.remove(sharer)
        self.arbiter.remove(sharer.name)

    @precondition(lambda self: self.sharers)
    @rule(data=st.data(), count=st.integers(1, 4), prompt=st.integers(1, 20))
    def add(self, data: st.DataObject, count: int, prompt: int) -> None:
        add(data.draw(st.sampled_from(self.sharers)), count, prompt, max_tokens=6)

    @precondition(lambda self: self.sharers)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.sharers)).step(data.draw(st.sampled_from([1, 2])))

    @rule(seconds=st.sampled_from([0.001, 0.02, 2.0, 100.0]))
    def balance(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.arbiter.balance()

    @precondition(lambda self: self.sharers and not self.leaving)
    @rule(data=st.data())
    def reach_a_floor(self, data: st.DataObject) -> None:
        """Whoever wants all of it has it within a few steps, whatever others hold."""
        sharer = data.draw(st.sampled_from(self.sharers))
        add(sharer, 12, prompt=20, max_tokens=6)
        budget = self.arbiter.budget
        assert budget is not None
        for _ in range(12):
            self.clock.now_s += 0.02
            self.arbiter.balance()
            if sharer.granted_bytes >= budget.floor_bytes(sharer.name):
                return
            for each in self.sharers:
                each.step()
        raise AssertionError(f"{sharer.granted_bytes} of its floor")

    @invariant()
    def agrees(self) -> None:
        self.arbiter.check_integrity()
        everybody = (*self.sharers, *self.leaving)
        assert sum(sharer.granted_bytes for sharer in everybody) <= BUDGET
        for sharer in self.sharers:
            sharer.check()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
