"""Steps of several models that go through shared layers together, at random."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from piggyback_builders import ARCHITECTURES, Fleet, running_fleet
from weight_builders import write_family

from omniserve.engine.core import Engine
from omniserve.engine.joint_layers import JointLayers, Rider, num_shared_layers
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.engine.stepping import Stepping
from omniserve.requests import RequestOutput


class RandomRides(Stepping):
    """Begins steps of models, and moves any of them on, alone or as many as can ride together."""

    joint: JointLayers
    num_riders: Counter[int]
    """Times that so many steps were advanced together."""

    @classmethod
    def of(cls, engine: Engine, poll: Callable[[], None]) -> "RandomRides":
        """From now on `engine` steps like this."""
        rides = cls(engine._runtimes, engine._host, poll, engine.kv_sharing)
        rides.joint, rides.num_riders = JointLayers(), Counter()
        rides._rng = random.Random("rides")
        rides._under_way = {}
        engine._stepping = rides
        return rides

    _rng: random.Random
    _under_way: dict[str, tuple[ModelRuntime, RunningStep]]

    @property
    def is_parked(self) -> bool:
        return bool(self._under_way)

    def step(self) -> list[RequestOutput]:
        """One random thing out of all that may happen next."""
        if self._host is not None:
            self._attend(self._host)
        for name, runtime in self._runtimes.items():
            if name not in self._under_way and runtime.has_unfinished and self._rng.random() < 0.9:
                step = runtime.begin()
                if step is not None:
                    self._under_way[name] = (runtime, step)
        if not self._under_way:
            return [each for runtime in self._runtimes.values() for each in runtime.collect()]
        name = self._rng.choice(list(self._under_way))
        runtime, step = self._under_way[name]
        if step.cursor.next_layer < runtime.num_layers:
            self._move_on(runtime, step)
        assert self._poll_arrivals is not None
        self._poll_arrivals()
        if step.cursor.next_layer < runtime.num_layers:
            step.was_interrupted = True
            return []
        del self._under_way[name]
        return runtime.finish(step)

    def _move_on(self, runtime: ModelRuntime, step: RunningStep) -> None:
        riders = [Rider(runtime._executor, step.cursor)]
        for other, its_step in self._under_way.values():
            if its_step is step or its_step.cursor.next_layer != step.cursor.next_layer:
                continue
            rider = Rider(other._executor, its_step.cursor)
            if num_shared_layers([riders[0].executor, rider.executor]) > step.cursor.next_layer:
                riders.append(rider)
        self._rng.shuffle(riders)
        shared = num_shared_layers([rider.executor for rider in riders])
        end = self._rng.randint(step.cursor.next_layer + 1, runtime.num_layers)
        if len(riders) > 1 and shared > step.cursor.next_layer:
            self.joint.advance_together(riders, min(end, shared))
            self.num_riders[len(riders)] += 1
        else:
            runtime.advance(step, end)


@contextmanager
def riding_family(
    directory: Path, arch: str, regimes: list[str], **fields: Any
) -> Iterator[tuple[Fleet, RandomRides]]:
    """A fleet of a base and two fine-tunes that differ in their last layer."""
    overrides = ARCHITECTURES.get(arch, {}) | {"num_hidden_layers": 4}
    paths = write_family(directory, arch, seed=7, overrides=overrides)
    with running_fleet({path.name: path for path in paths}, regimes, **fields) as fleet:
        rides = RandomRides.of(fleet.engine, lambda: fleet.at_layer_boundary())
        yield fleet, rides
