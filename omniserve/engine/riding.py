"""Steps of several models that go through layers together where the models share them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from omniserve.engine.begun_step import BegunStep
from omniserve.engine.joint_layers import JointLayers
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.settings import JointLayerStats
from scheduler import Claim, ModelDemand, StandingStep
from scheduler.interleaving import begun
from scheduler.riding import (
    ALONE_EVERY,
    RowLimits,
    guest_models,
    riders,
    room_beside,
)


class Riding:
    """Begins steps to go along with another one, and takes them through its layers.

    Where they are not in its layers they stand, as any parked step does.
    """

    def __init__(self, runtimes: Mapping[str, ModelRuntime]) -> None:
        self.is_on = True
        self._runtimes = runtimes
        self._joint = JointLayers()
        self._num_hosted: Counter[str] = Counter()
        self._num_layers: Counter[str] = Counter()
        self._num_rows: Counter[str] = Counter()

    def stats(self, model: str) -> JointLayerStats:
        return JointLayerStats(self._num_layers[model], self._num_rows[model])

    def forget(self, model: str) -> None:
        """The model is not served any more."""
        for counts in (self._num_hosted, self._num_layers, self._num_rows):
            counts.pop(model, None)

    def guests_of(
        self,
        host: BegunStep,
        demands: Mapping[str, ModelDemand],
        parked: Iterable[BegunStep],
    ) -> dict[str, int]:
        """Models of which steps may begin together with `host`, and the layers that they share."""
        if not self.is_on or not self._takes_riders(host):
            return {}
        shared = {
            name: num_layers
            for name, runtime in self._runtimes.items()
            if name != host.model
            and (num_layers := host.runtime.num_layers_shared_with(runtime))
            and not runtime.scheduler.has_latency_sensitive_work
        }
        patient = [name for name in shared if demands[name].best_effort]
        names = guest_models(shared, patient, [each.standing for each in parked])
        if names and host.standing.plan.predicted_s > 0.0:
            self._num_hosted[host.model] += 1
            if self._num_hosted[host.model] % ALONE_EVERY == 0:
                return {}
        return {name: shared[name] for name in names}

    def begin(
        self,
        host: BegunStep,
        guests: Iterable[str],
        claims: Mapping[str, Claim],
        gap_share: float,
        now_s: float,
    ) -> list[BegunStep]:
        """Steps of these models, in their order, as large as there is room for beside `host`; they
        stand before their first layer."""
        steps = []
        room = room_beside(host.standing, _limits_of(host), claims, now_s, gap_share)
        num_rows = host.step.plan.num_tokens
        for name in guests:
            if room.is_none:
                break
            runtime = self._runtimes[name]
            step = runtime.begin(
                best_effort_tokens=room.num_rows, best_effort_s=room.layer_s * runtime.num_layers
            )
            if step is None:
                continue
            plan = step.plan
            scheduler = runtime.scheduler
            standing = begun(name, plan, runtime.num_layers, None, scheduler.num_offloaded)
            standing.beside_s = scheduler.beside_s(plan, num_rows)
            guest = BegunStep(runtime, step, standing)
            guest.follow(now_s)
            steps.append(guest)
            room = room.less(standing.num_best_effort_rows, standing.riding_layer_s)
            num_rows += plan.num_tokens
        return steps

    def beside(
        self,
        host: BegunStep,
        parked: Sequence[BegunStep],
        claims: Callable[[], Mapping[str, Claim]],
        now_s: float,
    ) -> list[BegunStep]:
        """Those of the parked steps that go through the next layer of `host` with it."""
        if not parked or not self.is_on or not self._takes_riders(host):
            return []
        rider = host.runtime.rider(host.step)
        steps = {
            id(each.standing): each
            for each in parked
            if not each.standing.is_urgent
            and each.model != host.model
            and rider.shares_next_layer(each.runtime.rider(each.step))
        }
        if not steps:
            return []
        room = room_beside(host.standing, _limits_of(host), claims(), now_s)
        return [steps[id(each)] for each in riders(room, _standing(steps.values()))]

    def advance(self, host: BegunStep, guests: Sequence[BegunStep]) -> None:
        """Runs the next layer of `host` for all of them."""
        steps = [host, *guests]
        to_layer = host.step.cursor.next_layer + 1
        together = [each.runtime.rider(each.step) for each in steps]
        with host.runtime.timings.phase("layers"):
            counts = self._joint.advance_together(together, to_layer)
        for each, count in zip(steps, counts, strict=True):
            self._num_layers[each.model] += 1
            self._num_rows[each.model] += count
        # What it took tells nothing of one of them alone.
        host.step.was_interrupted = True

    def _takes_riders(self, host: BegunStep) -> bool:
        """A captured graph has no layers that others could join."""
        return not (host.standing.is_urgent and host.runtime.runs_captured(host.step))


def _limits_of(host: BegunStep) -> RowLimits:
    settings = host.runtime.scheduler.settings
    return RowLimits(settings.max_step_tokens, settings.best_effort_tokens_beside_ls)


def _standing(steps: Iterable[BegunStep]) -> Iterable[StandingStep]:
    return (each.standing for each in steps)
