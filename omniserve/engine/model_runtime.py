"""One served model: its scheduler, executor, KV pool and the sequences it is working on."""

import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from omniserve.engine.executor import Executor, StepCursor
from omniserve.engine.host_copy import HostCopy
from omniserve.engine.kv_pool import DeviceKvPool
from omniserve.engine.limits import check_prompt, most_output_tokens
from omniserve.engine.penalties import has_penalties
from omniserve.engine.sampler import NO_TOKEN, THROWN_AWAY, Sampled, sample
from omniserve.engine.sequence import FAILED, Progress, Sequence
from omniserve.engine.text import TextModel
from omniserve.engine.timings import StepTimings
from omniserve.errors import InvalidRequest
from omniserve.models.decoder import DecoderModel
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelInfo, ModelStats
from scheduler import ModelDemand, Request, Scheduler, ServiceClass, StepPlan, StepResult


@dataclass(slots=True)
class RunningStep:
    """A planned step and how far it has come."""

    plan: StepPlan
    cursor: StepCursor
    started_s: float
    sampled: Sampled | None = None
    tokens: HostCopy | None = None
    """The sampled tokens on their way to the host."""


class ModelRuntime:
    """Turns requests for one model into steps, and steps into outputs."""

    def __init__(
        self,
        info: ModelInfo,
        model: DecoderModel,
        executor: Executor,
        scheduler: Scheduler,
        kv_pool: DeviceKvPool,
        text: TextModel,
        pipeline_depth: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.scheduler = scheduler
        self.timings = StepTimings()
        self._model = model
        self._executor = executor
        self._kv_pool = kv_pool
        self._text = text
        self._pipeline_depth = pipeline_depth
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}
        self._in_flight: deque[RunningStep] = deque()
        self._num_steps = 0
        self._last_step_s = 0.0

    @property
    def num_layers(self) -> int:
        return self._executor.num_layers

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or bool(self._in_flight)

    @property
    def has_urgent_work(self) -> bool:
        """Whether a latency-sensitive request waits for its first token."""
        return self.scheduler.awaits_first_token

    def demand(self) -> ModelDemand:
        """What this model could do with a turn; steps in flight are to be collected as well."""
        scheduler = self.scheduler
        return ModelDemand(
            latency_sensitive=scheduler.has_latency_sensitive_work,
            best_effort=self.has_unfinished,
            awaits_first_token=scheduler.awaits_first_token,
            best_effort_tokens_beside_ls=scheduler.settings.best_effort_tokens_beside_ls,
        )

    def add(self, request: EngineRequest) -> None:
        """Queues a request.

        Raises:
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
            needs_known_tokens=has_penalties(request.sampling),
        )
        try:
            self.scheduler.add(state)
        except ValueError as error:
            raise InvalidRequest(str(error), "request_id") from error
        self._sequences[request.request_id] = Sequence(
            request,
            state,
            self._text.stream(request.prompt_token_ids),
            self.info.eos_token_ids,
            self.info.vocab_size,
            self._kv_pool.cache.device,
        )

    def abort(self, request_id: str) -> bool:
        """Forgets a request and frees its KV; false if it is not known here."""
        if self._sequences.pop(request_id, None) is None:
            return False
        self.scheduler.abort(request_id)
        return True

    def begin(
        self, *, latency_sensitive_only: bool = False, best_effort_tokens: int | None = None
    ) -> RunningStep | None:
        """Plans a step and puts its tokens on the device; None if there is nothing to do."""
        started_s = self._clock()
        with self.timings.phase("schedule"):
            plan = self.scheduler.schedule(
                latency_sensitive_only=latency_sensitive_only, best_effort_tokens=best_effort_tokens
            )
        if plan is None:
            return None
        with self.timings.phase("prepare"):
            cursor = self._executor.start(plan)
        return RunningStep(plan, cursor, started_s)

    def advance(self, step: RunningStep, to_layer: int) -> None:
        with self.timings.phase("layers"):
            self._executor.advance(step.cursor, to_layer)

    def finish(self, step: RunningStep) -> list[RequestOutput]:
        """Samples a step whose layers are done; outputs are those of the oldest step in flight."""
        step.sampled = self._sample(step)
        if step.sampled is not None:
            step.tokens = HostCopy(step.sampled.token_ids)
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
            advances = self._accept(step)
        with self.timings.phase("complete"):
            outputs = self._complete(step, advances)
        self.timings.num_steps += 1
        self._num_steps += 1
        self._last_step_s = self._clock() - step.started_s
        return outputs

    def stats(self) -> ModelStats:
        scheduler = self.scheduler
        return ModelStats(
            name=self.info.name,
            running=scheduler.running_by_tier(),
            waiting=scheduler.waiting_by_tier(),
            kv_used_bytes=scheduler.num_used_blocks * self._kv_pool.block_bytes,
            kv_total_bytes=self._kv_pool.num_bytes,
            num_steps=self._num_steps,
            num_preemptions=scheduler.num_preemptions,
            num_cached_prompt_tokens=scheduler.num_cached_prompt_tokens,
            step_ms=self._last_step_s * 1e3,
        )

    def _sample(self, step: RunningStep) -> Sampled | None:
        groups = step.cursor.batch.sampling_groups
        # A request may have been aborted while its step ran; its row is sampled and thrown away.
        sequences = [self._sequences.get(group.request_id) for group in groups]
        rows = [
            THROWN_AWAY
            if sequence is None
            else sequence.sampling_row(
                group.start + group.num_tokens - sequence.state.num_prompt_tokens
            )
            for group, sequence in zip(groups, sequences, strict=True)
        ]
        if not rows:
            return None
        with self.timings.phase("logits"):
            logits: Tensor = self._executor.logits(step.cursor)
        with self.timings.phase("sample"):
            sampled = sample(logits, rows)
            self._executor.remember(step.cursor.batch, sampled.token_ids)
        return sampled

    def _accept(self, step: RunningStep) -> dict[str, tuple[int, Progress, int]]:
        """By request: its new token, what that did, and the row it was sampled from."""
        if step.tokens is None:
            return {}
        token_ids = step.tokens.wait()
        advances = {}
        for row, group in enumerate(step.cursor.batch.sampling_groups):
            sequence = self._sequences.get(group.request_id)
            # A plan made ahead may hold one more row of a request that has ended meanwhile.
            if sequence is not None:
                token_id = token_ids[row]
                failed = token_id == NO_TOKEN
                progress = FAILED if failed else sequence.accept(token_id)
                advances[group.request_id] = (token_id, progress, row)
        return advances

    def _complete(
        self, step: RunningStep, advances: dict[str, tuple[int, Progress, int]]
    ) -> list[RequestOutput]:
        result = StepResult(
            sampled={request_id: advance[0] for request_id, advance in advances.items()},
            finished_ids=frozenset(
                request_id
                for request_id, (_, progress, _) in advances.items()
                if progress.finish_reason is not None
            ),
        )
        finished = {state.request_id for state in self.scheduler.complete(step.plan, result)}
        outputs = []
        for request_id, (token_id, progress, row) in advances.items():
            if progress is FAILED:
                outputs.append(self._sequences[request_id].failure())
                continue
            logprobs = step.sampled.logprobs.get(row) if step.sampled is not None else None
            outputs.append(
                self._sequences[request_id].output(
                    token_id,
                    progress,
                    None if logprobs is None else logprobs.to_host(token_id),
                    at_limit=request_id in finished,
                )
            )
        for request_id in finished:
            self._sequences.pop(request_id, None)
        return outputs
