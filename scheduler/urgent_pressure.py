"""How near latency-sensitive requests are to needing all of a device that lends out cores."""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.arrival_rate import ArrivalRate
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.step_control import LEAST_PROMPT_SHARE, StepControl
from scheduler.step_time import StepCosts, StepShape

_TYPICAL_CHUNK = StepShape(
    num_prefill_tokens=64, prefill_pairs=64 * 65 // 2, prefill_context_tokens=64, num_sampled_rows=1
)


@dataclass(frozen=True, slots=True)
class Pressure:
    """Of one model, on the device without the cores that it lends."""

    share: float = 0.0
    """Part of the device's time that decodes, and prompts at the rate at which they come, need."""
    lateness: float = 0.0
    """Part of their time to the first token that the prompts that are here will have waited."""


def pressure_on(device: Iterable[Pressure]) -> float:
    """Of all models of a device together."""
    pressures = list(device)
    share = sum(each.share for each in pressures)
    return max([share, *(each.lateness for each in pressures)])


class UrgentPressure:
    """Of one model. Nothing where step times are not known, or no cores are lent."""

    def __init__(self, control: StepControl, queues: RequestQueues, arrivals: ArrivalRate) -> None:
        """`arrivals` are those of prompts, on all cores of the device."""
        self._control = control
        self._queues = queues
        self._arrivals = arrivals
        self._decodes = StepShape()
        self._token_s = 0.0

    def note_running(self, decodes: StepShape, token_s: float) -> None:
        """A step is being planned; its decodes have this shape, the first of them `token_s`."""
        self._decodes, self._token_s = decodes, token_s

    def note_arrival(self, request: Request, now_s: float) -> None:
        """A request is taken; one that the fallback of its tier has is not urgent any more."""
        is_urgent = request.service_class is ServiceClass.LATENCY_SENSITIVE
        if is_urgent and request.expected_prefill_s is not None:
            self._arrivals.note(request.expected_prefill_s, now_s)

    def next_prompt_s(self, now_s: float) -> float:
        """That a prompt which may come at any moment is expected to take; 0 where none came
        lately."""
        return self._arrivals.mean_work_s if self._arrivals.came_lately(now_s) else 0.0

    def at(self, now_s: float) -> Pressure:
        """At this time. Takes time for each prompt that is here."""
        beside = self._control.costs_beside_host
        if beside is None:
            return Pressure()
        decode_share = 0.0
        # Behind the last of them no step may be planned that would tell.
        if self._token_s and self._queues.running[ServiceClass.LATENCY_SENSITIVE]:
            decode_share = beside.step_s(self._decodes) / self._token_s
        slowdown = _slowdown(self._control.costs_alone, beside)
        return Pressure(
            decode_share + slowdown * self._arrivals.of(now_s),
            self._lateness(now_s, slowdown / max(LEAST_PROMPT_SHARE, 1.0 - decode_share)),
        )

    def _lateness(self, now_s: float, stretch: float) -> float:
        ready_s = now_s + self._control.urgent_residual_s(now_s)
        latest = 0.0
        for request in self._prompts():
            if request.objectives is None or request.num_unscheduled <= 0:
                continue
            ready_s += stretch * (request.expected_prefill_s or 0.0)
            latest = max(latest, (ready_s - request.arrival_s) / request.objectives.ttft_s)
        return latest

    def _prompts(self) -> Iterable[Request]:
        service_class = ServiceClass.LATENCY_SENSITIVE
        for queue in (self._queues.running[service_class], self._queues.waiting[service_class]):
            yield from (each for each in queue if each.first_token_s is None)


def _slowdown(alone: StepCosts, beside: StepCosts) -> float:
    return max(1.0, beside.step_s(_TYPICAL_CHUNK) / alone.step_s(_TYPICAL_CHUNK))
