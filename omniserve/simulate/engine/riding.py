"""Simulated steps of several models that go together through layers which these share."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from omniserve.settings import JointLayerStats
from omniserve.simulate.engine.begun_step import BegunStep
from omniserve.simulate.engine.model import SimulatedModel
from scheduler import Claim, ModelDemand
from scheduler.interleaving import begun
from scheduler.riding import ALONE_EVERY, RowLimits, guest_models, riders, room_beside


class SimulatedRiding:
    """What `omniserve.engine.riding.Riding` is to a real engine, by the same rules."""

    def __init__(self, models: Mapping[str, SimulatedModel]) -> None:
        self._models = models
        self._num_hosted: Counter[str] = Counter()
        self._num_layers: Counter[str] = Counter()
        self._num_rows: Counter[str] = Counter()

    def stats(self, model: str) -> JointLayerStats:
        return JointLayerStats(self._num_layers[model], self._num_rows[model])

    def guests_of(
        self,
        host: BegunStep,
        demands: Mapping[str, ModelDemand],
        parked: Iterable[BegunStep],
    ) -> dict[str, int]:
        """Models of which steps may begin together with `host`, and the layers that they share."""
        if not _takes_riders(host):
            return {}
        shared = {
            name: num_layers
            for name, model in self._models.items()
            if model is not host.model
            and (num_layers := host.model.num_layers_shared_with(model))
            and not model.scheduler.has_latency_sensitive_work
        }
        patient = [name for name in shared if demands[name].best_effort]
        names = guest_models(shared, patient, [each.standing for each in parked])
        if names and host.step.plan.predicted_s > 0.0:
            self._num_hosted[host.model.name] += 1
            if self._num_hosted[host.model.name] % ALONE_EVERY == 0:
                return {}
        return {name: shared[name] for name in names}

    def begin(
        self,
        host: BegunStep,
        guests: Iterable[str],
        claims: Mapping[str, Claim],
        gap_share: float,
        now_s: float,
        *,
        host_active: bool,
    ) -> list[BegunStep]:
        """Steps of these models, in their order, as large as there is room for beside `host`; they
        stand before their first layer."""
        steps = []
        room = room_beside(host.standing, _limits_of(host), claims, now_s, gap_share)
        num_rows = host.step.plan.num_tokens
        for name in guests:
            if room.is_none:
                break
            model = self._models[name]
            step = model.begin(
                host_active=host_active,
                best_effort_tokens=room.num_rows,
                best_effort_s=room.layer_s * model.num_layers,
            )
            if step is None:
                continue
            scheduler = model.scheduler
            standing = begun(name, step.plan, model.num_layers, None, scheduler.num_offloaded)
            standing.beside_s = scheduler.beside_s(step.plan, num_rows)
            guest = BegunStep(model, step, standing)
            guest.park(now_s)
            steps.append(guest)
            room = room.less(standing.num_best_effort_rows, standing.riding_layer_s)
            num_rows += step.plan.num_tokens
        return steps

    def beside(
        self,
        host: BegunStep,
        parked: Iterable[BegunStep],
        claims: Callable[[], Mapping[str, Claim]],
        now_s: float,
    ) -> list[BegunStep]:
        """Those of the parked steps that go through the next layer of `host` with it."""
        next_layer = host.step.next_layer
        steps = {
            id(each.standing): each
            for each in self._candidates(host, parked)
            if each.step.next_layer == next_layer
        }
        if not steps:
            return []
        room = room_beside(host.standing, _limits_of(host), claims(), now_s)
        found = riders(room, (each.standing for each in steps.values()))
        return [steps[id(each)] for each in found]

    def next_meeting(self, host: BegunStep, parked: Iterable[BegunStep]) -> int:
        """The layer behind the next one at which `host` comes to where another step stands that
        might go on with it; the number of its layers where none does."""
        layers = (each.step.next_layer for each in self._candidates(host, parked))
        ahead = (layer for layer in layers if layer > host.step.next_layer)
        return min(ahead, default=host.model.num_layers)

    def note_layer(self, steps: Sequence[BegunStep]) -> None:
        """All these are about to go through a layer together."""
        for each in steps:
            self._num_layers[each.model.name] += 1
            self._num_rows[each.model.name] += each.step.num_rows_at(each.step.next_layer)

    @staticmethod
    def _candidates(host: BegunStep, parked: Iterable[BegunStep]) -> list[BegunStep]:
        if not _takes_riders(host):
            return []
        return [
            each
            for each in parked
            if not each.standing.is_urgent
            and not each.step.is_captured
            and each.model is not host.model
            and host.model.shares_layer(each.model, each.step.next_layer)
        ]


def _takes_riders(host: BegunStep) -> bool:
    if host.step.is_captured:
        return False
    return not (host.standing.is_urgent and host.model.can_capture(host.step))


def _limits_of(host: BegunStep) -> RowLimits:
    settings = host.model.scheduler.settings
    return RowLimits(settings.max_step_tokens, settings.best_effort_tokens_beside_ls)
