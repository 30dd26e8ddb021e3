"""One served model: its scheduler, executor, KV pool and the sequences it is working on."""

import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from omniserve.engine.executor import Executor, StepCursor
from omniserve.engine.host_copy import HostCopy
from omniserve.engine.kv_pool import DeviceKvPool
from omniserve.engine.limits import check_prompt, most_output_tokens
from omniserve.engine.penalties import has_penalties
from omniserve.engine.sampler import Sampled, sample
from omniserve.engine.sequence import Sequence
from omniserve.engine.sequences import Advance, SampledRow, Sequences
from omniserve.engine.text import TextModel
from omniserve.engine.timings import StepTimings
from omniserve.errors import InvalidRequest, Overloaded
from omniserve.piggyback.lane_run import LaneRun
from omniserve.piggyback.runtime import Piggyback
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelInfo, ModelStats
from scheduler import ModelDemand, Request, Scheduler, ServiceClass, StepPlan, StepResult

_MOST_RETRY_S = 10.0
"""Longest wait that a refused request is told: what is predicted for later is little worth."""


@dataclass(slots=True)
class RunningStep:
    """A planned step and how far it has come."""

    plan: StepPlan
    cursor: StepCursor
    started_s: float
    rows: tuple[SampledRow, ...] = ()
    """Rows that are sampled; those of offloaded requests come last."""
    sampled: Sampled | None = None
    tokens: HostCopy | None = None
    """The sampled tokens on their way to the host."""
    was_interrupted: bool = False
    """Whether other work ran between its layers."""

    @property
    def num_lane_rows(self) -> float:
        """The mean over the layers."""
        lanes = self.cursor.lanes
        return 0.0 if lanes is None else float(lanes.rows.counts.mean())


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
        self._executor = executor
        self._kv_pool = kv_pool
        self._text = text
        self._pipeline_depth = pipeline_depth
        self._piggyback = piggyback
        self._clock = clock
        self._sequences = Sequences()
        self._in_flight: deque[RunningStep] = deque()
        self._num_steps = 0
        self._last_step_s = 0.0

    @property
    def num_layers(self) -> int:
        return self._executor.num_layers

    @property
    def has_unfinished(self) -> bool:
        if self._piggyback is not None and self._piggyback.is_settling:
            return True
        return self.scheduler.has_unfinished or bool(self._in_flight)

    @property
    def num_offloaded(self) -> int:
        """Requests whose KV is on the host, or on its way there or back."""
        return self.scheduler.num_offloaded

    @property
    def has_urgent_work(self) -> bool:
        """Whether a latency-sensitive request waits for its first token."""
        return self.scheduler.awaits_first_token

    def warm_up(self) -> None:
        """Makes what steps would make when they first need it, and forgets the trials so far."""
        self._executor.warm_up(None if self._piggyback is None else self._piggyback.exchange)
        if self._piggyback is not None:
            self._piggyback.reset_counters()

    def demand(self) -> ModelDemand:
        """What this model could do with a turn; steps in flight are to be collected as well."""
        scheduler = self.scheduler
        return ModelDemand(
            latency_sensitive=scheduler.has_latency_sensitive_work,
            best_effort=self.has_unfinished,
            awaits_first_token=scheduler.awaits_first_token,
            best_effort_tokens_beside_ls=scheduler.settings.best_effort_tokens_beside_ls,
            slack_s=scheduler.slack_s(self._clock()),
        )

    def add(self, request: EngineRequest) -> None:
        """Queues a request.

        Raises:
            Overloaded: its first token would come later than promised.
            InvalidRequest: the id is in use, or the prompt is empty, too long or of another
                vocabulary.
        """
        check_prompt(request, self.info)
        state = Request(
            request_id=request.request_id,
            service_class=ServiceClass(request.service_class),
            tier=request.tier,
            arrival_s=self._clock(),
            token_ids=array("q", request.prompt_token_ids),
            max_tokens=most_output_tokens(request, self.info),
            objectives=request.objectives,
            needs_known_tokens=has_penalties(request.sampling),
        )
        self._refuse_late(state)
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

    def _refuse_late(self, state: Request) -> None:
        """Raises Overloaded for a request whose first token would come too late."""
        if state.objectives is None:
            return
        ttft_s = self.scheduler.predicted_ttft_s(state, self._clock())
        promised_s = state.objectives.ttft_s
        if ttft_s > promised_s:
            retry_after_s = min(_MOST_RETRY_S, ttft_s - promised_s)
            when = "not be had soon" if ttft_s == inf else f"take {ttft_s * 1e3:.0f} ms"
            raise Overloaded(
                f"tier {state.tier!r} promises the first token within {promised_s * 1e3:.0f} ms, "
                f"but it would {when} now; try again in {retry_after_s:.1f} s",
                retry_after_s,
            )

    def abort(self, request_id: str) -> bool:
        """Forgets a request and frees its KV; false if it is not known here."""
        if not self._sequences.remove(request_id):
            return False
        self.scheduler.abort(request_id)
        self._settle()
        return True

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

    def finish(self, step: RunningStep) -> list[RequestOutput]:
        """Samples a step whose layers are done; outputs are those of the oldest step in flight."""
        self._sample(step)
        self._in_flight.append(step)
        if len(self._in_flight) < self._pipeline_depth and self.scheduler.has_unfinished:
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
        self.last_plan = step.plan
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
        """Gives shared memory back; the host attention process has stopped."""
        if self._piggyback is not None:
            self._piggyback.close()

    def stats(self) -> ModelStats:
        scheduler = self.scheduler
        return ModelStats(
            name=self.info.name,
            running=scheduler.counts.running_by_tier() + scheduler.counts.offloaded_by_tier(),
            waiting=scheduler.counts.waiting_by_tier(),
            kv_used_bytes=scheduler.counts.num_used_blocks * self._kv_pool.block_bytes,
            kv_total_bytes=self._kv_pool.num_bytes,
            num_steps=self._num_steps,
            num_preemptions=scheduler.counts.num_preemptions,
            num_cached_prompt_tokens=scheduler.counts.num_cached_prompt_tokens,
            step_ms=self._last_step_s * 1e3,
            piggyback=None if self._piggyback is None else self._piggyback.stats(),
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
        result = StepResult(
            sampled={
                request_id: advance.token_id
                for request_id, advance in advances.items()
                if not advance.from_lane
            },
            lane_sampled={
                request_id: advance.token_id
                for request_id, advance in advances.items()
                if advance.from_lane
            },
            finished_ids=frozenset(
                request_id
                for request_id, advance in advances.items()
                if advance.progress.finish_reason is not None
            ),
            num_lane_rows=step.num_lane_rows,
            was_interrupted=step.was_interrupted,
        )
        completed = self.scheduler.complete(step.plan, result, self._clock())
        finished = {state.request_id for state in completed}
        self._settle()
        return self._sequences.outputs(advances, step.sampled, finished)
