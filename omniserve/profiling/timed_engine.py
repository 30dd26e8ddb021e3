"""An engine that is driven as its process drives it, with every step timed."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq

from omniserve.devices.device import open_device
from omniserve.engine.core import Engine
from omniserve.messages import Outputs, encode
from omniserve.models.loading import load_config
from omniserve.profiling.messages import Opened, StepSample
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams, ServiceClassName
from omniserve.settings import EngineSettings, ModelStats
from scheduler import StepPlan
from scheduler.plan_shape import shape_of

_TIER = "calibration"
_GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One step that ended, and what it took from the end of the one before."""

    plan: StepPlan
    seconds: float
    layers_s: float
    around_layers_s: float

    def sample(self, scene: int, place: int) -> StepSample:
        shape = shape_of(self.plan)
        return StepSample(scene, place, shape, self.seconds, self.layers_s, self.around_layers_s)


class TimedEngine:
    """One model of an engine, alone with it; what it computes is random."""

    def __init__(self, settings: EngineSettings, model: str, seed: int) -> None:
        """Raises CheckpointError or ConfigError as the engine does."""
        self._wire = _Wire()
        device = open_device(settings.device)
        self._pipeline_depth = device.pipeline_depth
        (path,) = (Path(each.path) for each in settings.models if each.name == model)
        self._max_positions = int(load_config(path).max_position_embeddings)
        self.engine = Engine(settings, self._wire.poll, device)
        self.engine.warm_up()
        self.runtime = self.engine.runtime(model)
        self.info = self.runtime.info
        self._random = random.Random(seed)
        self._num_added = 0
        self._num_tokens: dict[str, int] = {}

    def opened(self) -> Opened:
        """What the engine says of itself."""
        return Opened(
            self.info,
            self.engine.device,
            self.runtime.num_layers,
            self._pipeline_depth,
            self._max_positions,
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
        waited_s = phases["detokenise"] if self._pipeline_depth > 1 else 0.0
        around_s = max(0.0, seconds - phases["layers"] - waited_s)
        return TimedStep(plan, seconds, phases["layers"], around_s)

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
        self.engine.close()
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
