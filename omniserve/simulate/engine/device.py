"""The simulated device: what layers take, and when it has done them."""

from collections.abc import Iterator, Sequence
from math import inf

from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.begun_step import BegunStep
from omniserve.simulate.engine.host_side import HostSide
from omniserve.simulate.engine.model import SimulatedModel
from omniserve.simulate.engine.stretch import Stretch
from omniserve.simulate.engine.waiting import Waiting


class SimulatedDevice:
    """Runs layers of one step at a time, or one layer for several."""

    def __init__(
        self,
        host: HostSide,
        clock: Clock,
        waiting: Waiting,
    ) -> None:
        self.stretch: Stretch | None = None
        """The layers that run, where they may be interrupted."""
        self.stolen_s = 0.0
        """Time that the front took from the engine since the last step was laid out."""
        self._host = host
        self._clock = clock
        self._waiting = waiting
        self._free_s = 0.0

    def lay_out(self, steps: Sequence[BegunStep]) -> Iterator[None]:
        """These are about to begin, one after the other: time of the host that no layer takes."""
        overheads_s = (each.model.overhead_s(each.step, self._host.has_cores) for each in steps)
        ready_s = self._clock.now_s + sum(overheads_s) + self.stolen_s
        self.stolen_s = 0.0
        for each in steps:
            each.step.ready_s = ready_s
        if any(each.step.lanes is not None for each in steps):
            # Results that come meanwhile are bound too.
            yield from self._waiting.until(ready_s)

    def run_alone(
        self,
        running: BegunStep,
        to_layer: int,
        look_s: float | None,
    ) -> Iterator[None]:
        """Layers up to where lane rows are bound next, at most to `to_layer`.

        With `look_s` somebody may stop them at any boundary, and does look at the first one that is
        not before it.
        """
        model, step = running.model, running.step
        self._bind(running)
        if step.next_layer == 0:
            step.is_captured = model.can_capture(step)
        started_s = max(self._clock.now_s, step.ready_s)
        num_layers = min(to_layer, step.stop_layer) - step.next_layer
        layer_s = self._host_layer_s(model, step.layer_s, may_stop=look_s is not None)
        stop_s = started_s + num_layers * layer_s
        num_passed = num_layers
        if look_s is None:
            yield from self._waiting.until(stop_s)
        else:
            stretch = self.stretch = Stretch(started_s, layer_s, num_layers)
            first_s = stretch.boundary_s(look_s) if look_s < inf else inf
            yield from self._waiting.until(min(stop_s, first_s))
            self.stretch = None
            num_passed = stretch.num_passed(self._clock.now_s)
        self._pass(running, [running], num_passed, started_s, step.layer_s)

    def run_joint(self, host: BegunStep, guests: Sequence[BegunStep]) -> Iterator[None]:
        """The next layer of all of them, once for all their rows."""
        steps = [host, *guests]
        for each in steps:
            self._bind(each)
        started_s = max(self._clock.now_s, *(each.step.ready_s for each in steps))
        layer_s = host.model.joint_layer_s([each.step for each in steps], self._host.has_cores)
        yield from self._waiting.until(
            started_s + self._host_layer_s(host.model, layer_s, may_stop=True)
        )
        self._pass(host, steps, 1, started_s, layer_s)
        for each in steps:
            each.step.was_interrupted = True

    def _bind(self, running: BegunStep) -> None:
        step = running.step
        if step.next_layer == step.stop_layer:
            if step.lanes is not None:
                self._host.collect()
            running.model.begin_stretch(step, self._host.has_cores)

    @staticmethod
    def _host_layer_s(model: SimulatedModel, layer_s: float, *, may_stop: bool) -> float:
        """From one layer boundary of the host to the next."""
        if model.profile.pipeline_depth == 1:
            return layer_s
        launch_s = model.profile.launch_s / model.num_layers
        # Where a step may stop, the host queues one layer ahead at most.
        return max(launch_s, layer_s) if may_stop else launch_s

    def _pass(
        self,
        host: BegunStep,
        steps: Sequence[BegunStep],
        num_passed: int,
        started_s: float,
        layer_s: float,
    ) -> None:
        now_s = self._clock.now_s
        if host.model.profile.pipeline_depth > 1:
            started_s = max(started_s, self._free_s)
            self._free_s = max(now_s, started_s + num_passed * layer_s)
        else:
            self._free_s = now_s
        for each in steps:
            each.step.done_s = self._free_s
            each.pass_layers(num_passed, started_s)
