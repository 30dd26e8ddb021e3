"""An engine that is driven as its process drives it, with every step timed."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import zmq

from omniserve.engine.core import Engine
from omniserve.messages import Outputs, encode
from omniserve.models.loading import load_config
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.messages import Opened, StepSample
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams, ServiceClassName
from omniserve.settings import ModelSettings, ModelStats
from scheduler import StepPlan
from scheduler.plan_shape import shape_of
from scheduler.step_time import coldness_after

_TIER = "calibration"
_GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One step that ended, and what it took from the end of the one before."""

    plan: StepPlan
    seconds: float
    layers_s: float
    around_layers_s: float
    num_lane_rows: float
    num_sampled_rows: int
    coldness: float
    """At which it began."""

    def sample(self, scene: int, place: int) -> StepSample:
        shape = replace(
            shape_of(self.plan),
            num_lane_rows=self.num_lane_rows,
            num_sampled_rows=self.num_sampled_rows,
            coldness=self.coldness,
        )
        return StepSample(scene, place, shape, self.seconds, self.layers_s, self.around_layers_s)


class TimedEngine:
    """One model of a warm engine that has nothing else to do; what it computes is random."""

    def __init__(
        self,
        engine: Engine,
        model: ModelSettings,
        seed: int,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`before_step` is called before every step, and may raise to end a measurement."""
        self.engine = engine
        self.runtime = engine.runtime(model.name)
        self.info = self.runtime.info
        self._model = model
        self._before_step = before_step
        self._wire = _Wire()
        self._random = random.Random(seed)
        self._num_added = 0
        self._num_tokens: dict[str, int] = {}
        self._coldness = 0.0

    def opened(self, measured_on: MeasuredOn) -> Opened:
        """What the engine says of itself. Raises CheckpointError."""
        config = load_config(Path(self._model.checkpoint_path))
        return Opened(
            self.info,
            measured_on,
            self.runtime.num_layers,
            self.runtime.pipeline_depth,
            int(config.max_position_embeddings),
        )

    def add(self, num_prompt_tokens: int, max_tokens: int, service_class: ServiceClassName) -> str:
        """Queues a request with a prompt that nobody had before; its id."""
        self._num_added += 1
        request_id = f"calibration-{self._num_added}"
        prompt = self._random.choices(range(self.info.vocab_size), k=num_prompt_tokens)
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        self.engine.add(
            EngineRequest(request_id, self.info.name, tuple(prompt), sampling, service_class, _TIER)
        )
        self._num_tokens[request_id] = 0
        return request_id

    def tokens_of(self, request_id: str) -> int:
        """Output tokens so far."""
        return self._num_tokens[request_id]

    def step(self) -> TimedStep | None:
        """Runs until a step is complete; None where one call of the engine completed none."""
        self._before_step()
        timings = self.runtime.timings
        timings.reset()
        start_s = time.perf_counter()
        self._wire.poll()
        outputs = self.engine.step()
        self._wire.send(outputs)
        seconds = time.perf_counter() - start_s
        self._wire.drain()
        for output in outputs:
            self._num_tokens[output.request_id] += len(output.token_ids)
        plan = self.runtime.last_plan
        if not timings.num_steps or plan is None:
            return None
        phases = timings.seconds
        # Of a device that works by itself, the host waits for tokens in the phase that reads them.
        waited_s = phases["detokenise"] if self.runtime.pipeline_depth > 1 else 0.0
        coldness = self._coldness
        self._coldness = coldness_after(coldness, plan.num_tokens)
        around_s = max(0.0, seconds - phases["layers"] - waited_s)
        return TimedStep(
            plan,
            seconds,
            phases["layers"],
            around_s,
            self.runtime.last_lane_rows,
            self.runtime.last_num_sampled,
            coldness,
        )

    def steps(self, num_steps: int) -> Iterator[TimedStep]:
        """So many complete steps. Raises TimeoutError where they do not come."""
        deadline_s = time.perf_counter() + _GIVE_UP_S
        while num_steps:
            step = self.step()
            if step is not None:
                num_steps -= 1
                yield step
            elif time.perf_counter() > deadline_s:
                raise TimeoutError(f"no step within {_GIVE_UP_S:g} s: {self.runtime.scheduler!r}")

    def stats(self) -> ModelStats:
        return self.runtime.stats()

    def clear(self) -> None:
        """Ends all requests."""
        for request_id in self._num_tokens:
            self.engine.abort(request_id)
        self._num_tokens.clear()
        while self.engine.has_unfinished:
            self.engine.step()

    def close(self) -> None:
        """The engine stays open."""
        self._wire.close()


class _Wire:
    """Sends and looks for messages at the engine process's cost, to nobody."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._ends = [self._context.socket(zmq.PAIR) for _ in range(2)]
        self._ends[0].bind("inproc://calibration")
        self._ends[1].connect("inproc://calibration")

    def poll(self) -> None:
        try:
            self._ends[0].recv(zmq.NOBLOCK)
        except zmq.Again:
            return

    def send(self, outputs: list[RequestOutput]) -> None:
        if outputs:
            self._ends[0].send(encode(Outputs(outputs=tuple(outputs))))

    def drain(self) -> None:
        while self._ends[1].poll(0):
            self._ends[1].recv()

    def close(self) -> None:
        for end in self._ends:
            end.close(linger=0)
        self._context.term()
