"""Whatever arrives, ends, lands late or is lost: budgets, memory, order and fairness hold."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest
from builders_scheduler import BE, LS, HostBlockPool
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scheduler_clocked_engine import ClockedEngine

from scheduler import Objectives, PiggybackLimits, Request, SchedulerSettings
from scheduler.step_time import StepCosts

COSTS = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 5e-3), (8, 7e-3), (64, 40e-3), (256, 160e-3)),
    decode_context_token_s=2e-6,
    prefill_pair_s=2e-8,
    prefill_step_s=5e-4,
    lane_row_s=1e-4,
    sampled_row_s=5e-5,
)
MAX_MODEL_LEN = 96
TIERS = {"chat": Objectives(0.1, 12e-3), "voice": Objectives(0.3, 25e-3, 0.9)}


@st.composite
def scheduler_settings(draw: st.DrawFn, *, with_host: bool) -> SchedulerSettings:
    """Memory for one request of full length and little more, or plenty."""
    block_size = draw(st.sampled_from([4, 16]))
    limits = PiggybackLimits(
        num_lanes=draw(st.integers(1, 5)),
        max_lane_rows=draw(st.integers(1, 6)),
        max_lane_rows_beside_ls=draw(st.integers(0, 4)),
        max_resident_decodes=draw(st.sampled_from([None, None, 0, 1, 2])),
        return_patience=draw(st.integers(1, 6)),
    )
    return SchedulerSettings(
        num_blocks=MAX_MODEL_LEN // block_size + draw(st.sampled_from([0, 1, 3, 8, 100])),
        block_size=block_size,
        max_running_requests=draw(st.integers(1, 6)),
        max_step_tokens=draw(st.sampled_from([8, 40, 128])),
        best_effort_tokens_beside_ls=draw(st.sampled_from([0, 4, 128])),
        max_model_len=MAX_MODEL_LEN,
        prefix_caching=draw(st.booleans()),
        kv_reserve_share=draw(st.sampled_from([None, 0.05])),
        piggyback=limits if with_host else None,
    )


class Control(RuleBasedStateMachine):
    """A scheduler with step times, an engine that runs its plans, and their users."""

    depth = 1
    with_host = False

    def __init__(self) -> None:
        super().__init__()
        self.engine: ClockedEngine | None = None
        self.num_added = 0
        self.has_failed = False
        self.has_stragglers = self.has_pauses = False
        self.is_host_there_at_the_end = True

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        chosen = data.draw(scheduler_settings(with_host=self.with_host))
        host_blocks = None
        if self.with_host:
            num_least = MAX_MODEL_LEN // chosen.block_size
            num_blocks = num_least + data.draw(st.sampled_from([-1, 0, 2, 100]))
            host_blocks = HostBlockPool(num_blocks)
        self.has_stragglers, self.has_pauses = data.draw(st.booleans()), data.draw(st.booleans())
        self.is_host_there_at_the_end = data.draw(st.booleans())
        self.engine = ClockedEngine(chosen, COSTS, self.depth, host_blocks)

    # What users do.

    @rule(
        tier=st.sampled_from(["chat", "voice", "batch", "batch"]),
        tenant=st.sampled_from("abc"),
        num_prompt_tokens=st.integers(1, 70),
        num_shared_tokens=st.sampled_from([0, 0, 16, 40]),
        max_tokens=st.integers(1, 25),
        deadline_s=st.sampled_from([inf, inf, inf, 0.01, 0.2]),
        demote_after_tokens=st.sampled_from([None, None, None, 3]),
        needs_known_tokens=st.sampled_from([False, False, True]),
    )
    def add(
        self,
        tier: str,
        tenant: str,
        num_prompt_tokens: int,
        num_shared_tokens: int,
        max_tokens: int,
        deadline_s: float,
        demote_after_tokens: int | None,
        needs_known_tokens: bool,
    ) -> None:
        engine = self._engine
        self.num_added += 1
        first = 1000 * self.num_added
        prompt = [*range(num_shared_tokens), *range(first, first + num_prompt_tokens)]
        objectives = TIERS.get(tier)
        if not self.has_stragglers:
            demote_after_tokens = None
        request = Request(
            request_id=f"{tier}-{self.num_added}",
            service_class=BE if objectives is None else LS,
            tier=tier,
            arrival_s=engine.now_s,
            token_ids=array("q", prompt[:num_prompt_tokens]),
            max_tokens=max_tokens,
            objectives=objectives,
            tenant=tenant,
            deadline_s=engine.now_s + deadline_s,
            demote_after_tokens=None if objectives is None else demote_after_tokens,
            needs_known_tokens=needs_known_tokens,
        )
        if objectives is not None:
            assert engine.scheduler.ttft_forecast.ttft_s(request, engine.now_s) >= 0.0
            if demote_after_tokens is not None:
                # What it gets as best-effort work it did not wait for in that line.
                engine.checks.is_fair = False
        engine.add(request)

    @precondition(lambda self: self.engine and self.engine.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._engine.abort(data.draw(st.sampled_from(sorted(self._engine.requests))))

    # What an engine does.

    @precondition(lambda self: self.engine and len(self.engine.flights) < self.depth)
    @rule(
        best_effort_s=st.sampled_from([inf, inf, inf, 8e-3, 0.0]),
        is_host_active=st.booleans(),
    )
    def plan(self, best_effort_s: float, is_host_active: bool) -> None:
        if not self._engine.overtaking:
            with self._noted():
                self._engine.plan(best_effort_s, is_host_active=is_host_active)

    @precondition(lambda self: self.engine and self.engine.can_overtake)
    @rule()
    def overtake(self) -> None:
        if len(self._engine.overtaking) < self.depth:
            with self._noted():
                self._engine.overtake()

    @precondition(lambda self: self.engine and (self.engine.flights or self.engine.overtaking))
    @rule(factor=st.sampled_from([0.5, 1.0, 1.0, 1.2, 3.0]), stops=st.booleans())
    def complete(self, factor: float, stops: bool) -> None:
        with self._noted():
            self._engine.complete(factor, stops=stops)

    @precondition(lambda self: self.engine and not self.engine.overtaking)
    @rule(num_steps=st.integers(1, 12), host_keeps_up=st.booleans())
    def serve(self, num_steps: int, host_keeps_up: bool) -> None:
        """Some steps in a row, so that much can happen in few actions."""
        with self._noted():
            for _ in range(num_steps):
                while len(self._engine.flights) < self.depth and self._engine.plan(inf):
                    pass
                if self._engine.flights:
                    self._engine.complete(1.0)
                if host_keeps_up:
                    self._engine.catch_up()

    @rule(seconds=st.sampled_from([1e-3, 0.02, 0.3, 61.0]))
    def wait(self, seconds: float) -> None:
        self._engine.now_s += seconds if self.has_pauses else min(seconds, 0.02)

    @precondition(lambda self: self.with_host)
    @rule(offload_allowed=st.booleans(), lanes_open=st.booleans())
    def switch(self, offload_allowed: bool, lanes_open: bool) -> None:
        self._engine.scheduler.offload_allowed = offload_allowed
        self._engine.scheduler.lanes_open = lanes_open

    # What a host does.

    @precondition(lambda self: self.engine and self.engine.copies)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        self._engine.land(data.draw(st.sampled_from(sorted(self._engine.copies))))

    @precondition(lambda self: self.engine and self.engine.on_host)
    @rule(data=st.data())
    def attend(self, data: st.DataObject) -> None:
        self._engine.attend(data.draw(st.sampled_from(self._engine.on_host)))

    @precondition(lambda self: self.engine and self.engine.quiet_lanes)
    @rule(data=st.data())
    def quieten(self, data: st.DataObject) -> None:
        self._engine.quieten(data.draw(st.sampled_from(self._engine.quiet_lanes)))

    @precondition(lambda self: self.engine and self.engine.losable)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self._engine.lose(data.draw(st.sampled_from(self._engine.losable)))

    # What holds.

    @invariant()
    def books_agree(self) -> None:
        if self.engine is not None:
            self.engine.scheduler.check_integrity()

    def teardown(self) -> None:
        """Everybody who was admitted ends, in a bounded number of steps."""
        # What has failed already must not be hidden by what follows from that.
        if self.engine is not None and not self.has_failed:
            self.engine.drain(is_host_there=self.is_host_there_at_the_end)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.has_failed = True
            raise

    @property
    def _engine(self) -> ClockedEngine:
        assert self.engine is not None
        return self.engine


@pytest.mark.parametrize("with_host", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_control_keeps_what_it_promises(depth: int, with_host: bool) -> None:
    machine = type("Control", (Control,), {"depth": depth, "with_host": with_host})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
