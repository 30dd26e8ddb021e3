"""What happens beside the steps: host attention and copies of KV, of all models of an engine."""

from collections.abc import Iterator, Mapping
from math import inf

from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.host_queue import HostQueue
from omniserve.simulate.engine.model import SimulatedModel
from scheduler import HostCoresRule
from scheduler.urgent_pressure import pressure_on


class HostSide:
    """Tells the models what the host has done, and whose the shared cores are."""

    def __init__(
        self, models: Mapping[str, SimulatedModel], queue: HostQueue, clock: Clock
    ) -> None:
        self._models = models
        self._queue = queue
        self._clock = clock
        self._cores = HostCoresRule()

    @property
    def has_cores(self) -> bool:
        """Whether the device computes without those that host attention takes."""
        return self._cores.are_taken

    def poll(self) -> None:
        """Before a step."""
        self.collect()
        models, now_s = self._models.values(), self._clock.now_s
        for model in models:
            model.poll()
        self._cores.update(
            now_s,
            num_offloaded=sum(model.scheduler.num_offloaded for model in models),
            pressure=pressure_on(model.scheduler.pressure.at(now_s) for model in models),
        )
        for model in models:
            model.scheduler.host_rests = self._cores.is_resting

    def collect(self) -> None:
        """Results that have come."""
        if self._queue.num_waiting:
            models = list(self._models.values())
            for rows in self._queue.collect(self._clock.now_s):
                lanes = models[rows.model].lanes
                assert lanes is not None
                lanes.attended(rows)

    @property
    def next_event_s(self) -> float:
        """When the next copy lands or result comes; infinite where nothing is under way."""
        times = [self._queue.next_result_s, *self._landings_s()]
        return min((time for time in times if time is not None), default=inf)

    def check_integrity(self) -> None:
        """Raises an AssertionError where lanes and queue disagree."""
        lanes = [model.lanes for model in self._models.values() if model.lanes is not None]
        num_left = sum(each.num_on_host for each in lanes)
        assert num_left == self._queue.num_waiting, f"{num_left} != {self._queue.num_waiting}"

    def _landings_s(self) -> Iterator[float | None]:
        for model in self._models.values():
            if model.lanes is not None:
                yield model.lanes.next_landing_s
