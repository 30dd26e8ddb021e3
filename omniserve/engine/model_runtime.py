"""One served model: its scheduler, executor, KV pool and the sequences it is working on."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from omniserve.engine.admission import Admission
from omniserve.engine.control_stats import control_stats
from omniserve.engine.executor import Executor
from omniserve.engine.host_copy import HostCopy
from omniserve.engine.joint_layers import Rider, num_shared_layers
from omniserve.engine.kv_pool import DeviceKvPool
from omniserve.engine.limits import check_prompt
from omniserve.engine.running_step import RunningStep
from omniserve.engine.sampler import sample
from omniserve.engine.scheduler_request import scheduler_request
from omniserve.engine.sequence import Sequence
from omniserve.engine.sequences import Advance, SampledRow, Sequences
from omniserve.engine.text import TextModel
from omniserve.engine.timings import StepTimings
from omniserve.errors import InvalidRequest
from omniserve.models.weight_store import ModelWeights
from omniserve.piggyback.lane_run import LaneRun
from omniserve.piggyback.runtime import Piggyback
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelInfo, ModelStats
from scheduler import Claim, ModelDemand, Scheduler, SchedulerSettings, StepPlan
from scheduler.first_token_forecast import UrgentLoad
from scheduler.step_time import LinearStepTime
from scheduler.tier_terms import TierTerms


class ModelRuntime:
    """Turns requests for one model into steps, and steps into outputs."""

    def __init__(
        self,
        info: ModelInfo,
        executor: Executor,
        scheduler: Scheduler,
        kv_pool: DeviceKvPool,
        text: TextModel,
        pipeline_depth: int,
        piggyback: Piggyback | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.scheduler = scheduler
        self.timings = StepTimings()
        self.last_plan: StepPlan | None = None
        """Of the step that was completed last; for whoever measures steps."""
        self.last_lane_rows = 0.0
        """That joined it, the mean over the layers."""
        self.last_num_sampled = 0
        """Rows of which tokens came, those from lanes among them."""
        self._executor = executor
        self._kv_pool = kv_pool
        self._text = text
        self.pipeline_depth = pipeline_depth
        self._piggyback = piggyback
        self._left_host: Piggyback | None = None
        """Its part in host attention, where that is over: nothing but memory to give back."""
        self._clock = clock
        self._sequences = Sequences()
        self._admission = Admission(scheduler)
        self._in_flight: deque[RunningStep] = deque()
        self._num_steps = 0
        self._last_step_s = 0.0

    @property
    def num_layers(self) -> int:
        return self._executor.num_layers

    @property
    def is_adapter(self) -> bool:
        """Whether the model adds something to another one."""
        return self._executor.is_adapter

    @property
    def weights(self) -> ModelWeights:
        """Those that the model holds, alone or with others."""
        return self._executor.weights

    @property
    def has_unfinished(self) -> bool:
        if self._piggyback is not None and self._piggyback.is_settling:
            return True
        return self.scheduler.has_unfinished or bool(self._in_flight)

    @property
    def has_in_flight(self) -> bool:
        """Whether a step was given to the device whose tokens are not there yet."""
        return bool(self._in_flight)

    def runs_captured(self, step: RunningStep) -> bool:
        """Whether the layers of a step run as captured graphs, or may if none has run yet."""
        return self._executor.runs_captured(step.cursor)

    def next_stop(self, step: RunningStep) -> int:
        """The next layer boundary at which a step can stop."""
        return self._executor.next_stop(step.cursor)

    def warm_up(self, *, is_alone: bool) -> None:
        """Makes what steps would make when they first need it, and forgets the trials so far."""
        exchange = None if self._piggyback is None else self._piggyback.exchange
        self._executor.warm_up(exchange, is_alone=is_alone)
        if self._piggyback is not None:
            self._piggyback.reset_counters()

    def start_over(self, settings: SchedulerSettings, step_time: LinearStepTime | None) -> None:
        """With a new scheduler, as if nothing had run so far; nothing may be unfinished."""
        assert not self.has_unfinished, f"{self.scheduler!r} is to be replaced"
        host_blocks = None if self._piggyback is None else self._piggyback.host_blocks
        self.scheduler = Scheduler(settings, host_blocks, step_time)
        self._kv_pool.give_back_all()
        self._admission = Admission(self.scheduler)
        self.timings.reset()
        self.last_plan, self.last_lane_rows, self.last_num_sampled = None, 0.0, 0
        self._num_steps, self._last_step_s = 0, 0.0
        if self._piggyback is not None:
            self._piggyback.follow(self.scheduler)
            self._piggyback.reset_counters()

    @property
    def piggyback(self) -> Piggyback | None:
        """For whoever measures it; None where it is off."""
        return self._piggyback

    def demand(self, *, is_alone: bool) -> ModelDemand:
        """What this model could do with a turn; steps in flight are to be collected as well.

        One that is alone on its device need not know when its requests need it.
        """
        scheduler = self.scheduler
        if is_alone:
            is_there = scheduler.has_latency_sensitive_work
            claim = Claim(scheduler.awaits_first_token) if is_there else None
        else:
            claim = scheduler.claim(self._clock())
        return ModelDemand(
            claim=claim,
            best_effort=self.has_unfinished,
            best_effort_tokens_beside_ls=scheduler.settings.best_effort_tokens_beside_ls,
            num_layers=self.num_layers,
        )

    def add(self, request: EngineRequest, others: Iterable[UrgentLoad] = ()) -> None:
        """Queues a request, in the fallback of its tier where that is to take it.

        `others` are what other models on the device need of it.

        Raises:
            DeadlineExceeded: its deadline has passed.
            Overloaded: its first token would come later than promised, or the queue is full.
            InvalidRequest: the id is in use, or the prompt is empty, too long or of another
                vocabulary.
        """
        check_prompt(request, self.info)
        now_s = self._clock()
        self.scheduler.journal.advance(now_s)
        state = scheduler_request(request, self.info, now_s)
        self._admission.judge(state, request.rules, now_s, others)
        try:
            self.scheduler.add(state)
        except ValueError as error:
            raise InvalidRequest(str(error), "request_id") from error
        self._sequences.add(
            Sequence(
                request,
                state,
                self._text.stream(request.prompt_token_ids),
                self.info.eos_token_ids,
                self.info.vocab_size,
                self._kv_pool.cache.device,
            )
        )

    def set_terms(self, by_tier: Mapping[str, TierTerms]) -> None:
        """Requests that wait or run follow the new terms of their tiers."""
        self.scheduler.set_terms(by_tier)

    def abort(self, request_id: str) -> bool:
        """Forgets a request and frees its KV; false if it is not known here."""
        if not self._sequences.remove(request_id):
            return False
        self.scheduler.journal.advance(self._clock())
        self.scheduler.abort(request_id)
        self._settle()
        return True

    def end_all(self, reason: str) -> list[RequestOutput]:
        """Forgets all requests; returns what tells those who sent them."""
        ends = [sequence.unavailable(reason) for sequence in self._sequences]
        for end in ends:
            self.abort(end.request_id)
        return ends

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of it is on the host, nor on its way there or back."""
        return self._piggyback is None or self._piggyback.is_quiet

    def leave_host(self) -> None:
        """Takes it from the host attention process, which goes on; it must be quiet.

        Its memory there is given back by `take_apart`.
        """
        if self._piggyback is not None:
            self._piggyback.leave()
            self._left_host, self._piggyback = self._piggyback, None

    def take_apart(self) -> Iterator[None]:
        """Drops what is large, piece by piece, in any thread; the model has left the host, and can
        do nothing any more."""
        self._in_flight.clear()
        if self._left_host is not None:
            yield from self._left_host.take_apart()
            self._left_host = None
        yield from self._executor.take_apart()
        self._kv_pool.close()

    def begin(
        self,
        *,
        latency_sensitive_only: bool = False,
        best_effort_tokens: int | None = None,
        best_effort_s: float = inf,
    ) -> RunningStep | None:
        """Plans a step and puts its tokens on the device; None if there is nothing to do."""
        started_s = self._clock()
        piggyback = self._piggyback
        with self.timings.phase("schedule"):
            plan = self.scheduler.schedule(
                latency_sensitive_only=latency_sensitive_only,
                best_effort_tokens=best_effort_tokens,
                best_effort_s=best_effort_s,
                now_s=started_s,
                is_host_active=piggyback is not None and piggyback.has_host_cores,
                num_ready_lane_rows=0 if piggyback is None else piggyback.num_ready_rows,
            )
            if piggyback is not None:
                piggyback.begin_copies()
        if plan is None:
            return None
        with self.timings.phase("prepare"):
            lanes = None if piggyback is None else piggyback.begin_step(plan)
            cursor = self._executor.start(plan, lanes)
        return RunningStep(plan, cursor, started_s)

    def advance(self, step: RunningStep, to_layer: int) -> None:
        with self.timings.phase("layers"):
            self._executor.advance(step.cursor, to_layer)

    def rider(self, step: RunningStep) -> Rider:
        """The step as one of several that go through layers together."""
        return Rider(self._executor, step.cursor)

    def num_layers_shared_with(self, other: "ModelRuntime") -> int:
        """The first layers that both models have in common, in memory."""
        return num_shared_layers([self._executor, other._executor])

    def drop(self, step: RunningStep) -> None:
        """A step that `may_be_dropped` is not gone on with; its tokens are computed again. None of
        its requests may be in a later one, and the device must have done what it was given."""
        self.scheduler.drop(step.plan, self._clock())
        self._settle()

    def finish(self, step: RunningStep) -> list[RequestOutput]:
        """Samples a step whose layers are done; outputs are those of the oldest step in flight."""
        self._sample(step)
        self._in_flight.append(step)
        if len(self._in_flight) < self.pipeline_depth and self.scheduler.has_unfinished:
            return []
        return self.collect()

    def collect(self) -> list[RequestOutput]:
        """Waits for the oldest step in flight; returns what it produced, nothing if none is."""
        if not self._in_flight:
            return []
        step = self._in_flight.popleft()
        with self.timings.phase("detokenise"):
            token_ids = [] if step.tokens is None else step.tokens.wait(self._pump)
            advances = self._sequences.accept(step.rows, token_ids)
        with self.timings.phase("complete"):
            outputs = self._complete(step, advances)
        self.timings.num_steps += 1
        self.last_plan, self.last_num_sampled = step.plan, len(step.rows)
        self.last_lane_rows = step.num_lane_rows
        self._num_steps += 1
        self._last_step_s = self._clock() - step.started_s
        return outputs

    def poll(self) -> None:
        """Takes note of what the host and copies under way have got done; never waits."""
        if self._piggyback is not None:
            self._piggyback.poll()

    def note_landed_copies(self) -> None:
        """Amid a step: the part of `poll` that may free memory for latency-sensitive work."""
        if self._piggyback is not None and self.scheduler.has_latency_sensitive_work:
            self._piggyback.note_landed_copies()

    def check_integrity(self) -> None:
        """Raises an AssertionError where the books of requests, blocks and lanes disagree."""
        self.scheduler.check_integrity()
        if self._piggyback is not None:
            self._piggyback.check_integrity()

    def close(self) -> None:
        """Gives memory back that goes with nothing else; the host attention process has stopped."""
        if self._piggyback is not None:
            self._piggyback.close()
        self._kv_pool.close()

    def stats(self) -> ModelStats:
        scheduler = self.scheduler
        return ModelStats(
            name=self.info.name,
            running=scheduler.counts.running_by_tier() + scheduler.counts.offloaded_by_tier(),
            waiting=scheduler.counts.waiting_by_tier(),
            kv_used_bytes=scheduler.counts.num_used_blocks * self._kv_pool.block_bytes,
            kv_total_bytes=self._kv_pool.num_bytes,
            kv_granted_bytes=scheduler.counts.num_granted_blocks * self._kv_pool.block_bytes,
            kv_cached_bytes=scheduler.counts.num_cached_blocks * self._kv_pool.block_bytes,
            num_steps=self._num_steps,
            num_preemptions=scheduler.counts.num_preemptions,
            num_cached_prompt_tokens=scheduler.counts.num_cached_prompt_tokens,
            step_ms=self._last_step_s * 1e3,
            piggyback=None if self._piggyback is None else self._piggyback.stats(),
            control=control_stats(scheduler),
            prefilling=scheduler.counts.prefilling_ids(),
        )

    def _sample(self, step: RunningStep) -> None:
        cursor = step.cursor
        resident = [
            SampledRow(group.request_id, group.start + group.num_tokens, from_lane=False)
            for group in cursor.batch.sampling_groups
        ]
        step.rows = (*resident, *self._exits(cursor.lanes))
        if not step.rows:
            return
        with self.timings.phase("logits"):
            logits = self._executor.logits(cursor)
        with self.timings.phase("sample"):
            step.sampled = sample(logits, self._sequences.sampling_rows(step.rows))
            self._executor.remember(cursor.batch, step.sampled.token_ids)
        step.tokens = HostCopy(step.sampled.token_ids)

    def _pump(self) -> None:
        if self._piggyback is not None:
            self._piggyback.pump()

    def _settle(self) -> None:
        if self._piggyback is not None:
            self._piggyback.stop_released()

    def _exits(self, lanes: LaneRun | None) -> list[SampledRow]:
        if self._piggyback is None or lanes is None:
            return []
        return [SampledRow(*row, from_lane=True) for row in self._piggyback.end_step(lanes)]

    def _complete(self, step: RunningStep, advances: dict[str, Advance]) -> list[RequestOutput]:
        completed = self.scheduler.complete(step.plan, step.result(advances), self._clock())
        finished = {state.request_id for state in completed}
        self._settle()
        return self._sequences.outputs(advances, step.sampled, finished)
