"""When a latency-sensitive request would have its first token, if it were taken now."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import inf

from scheduler.arrival_rate import ArrivalRate
from scheduler.forecast_margins import ForecastMargins
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.residency import Residency
from scheduler.step_control import LEAST_PROMPT_SHARE, StepControl
from scheduler.step_load import StepLoad
from scheduler.step_time import StepCosts, StepShape

_OVERLOAD = 0.9
"""Part of the device's time that decodes, and prompts at the rate at which they come, need."""
_HOPELESS_SHARE = 0.25
"""Of the objective: a first token that is later by more is given up."""
_MOST_AWAITED = 32
"""Prompts that are looked at; those behind them come later anyway."""
_LATELY_S = 60.0


@dataclass(frozen=True, slots=True)
class UrgentLoad:
    """What the latency-sensitive requests of a model need of a device."""

    prompts_s: float = 0.0
    """Until all its prompts are computed, were nothing else there."""
    decode_share: float = 0.0
    """Part of the device's time with which its decodes keep their pace."""


def prefill_s(costs: StepCosts, num_done: int, num_left: int, max_step_tokens: int) -> float:
    """Of `num_left` tokens of one prompt, in chunks as long as a step may be."""
    total_s = 0.0
    while num_left > 0:
        num_tokens = min(num_left, max_step_tokens)
        total_s += StepLoad(costs).seconds_with(num_done, num_tokens)
        num_done, num_left = num_done + num_tokens, num_left - num_tokens
    return total_s


class FirstTokenForecast:
    """Reckons with the step that runs, with all prompts that came before, and with decodes beside
    them, which lend prompts in a hurry what they need unless there is too much work for the device;
    best-effort work waits.

    All prompts are reckoned as one batch, first come first served, as in the admission test of
    OmniServe (its section 3.3.2). A forecast takes time for each prompt that is here, and hardly
    any for requests that decode: these are summed up whenever a step is planned.
    """

    def __init__(
        self,
        control: StepControl,
        queues: RequestQueues,
        residency: Residency,
        arrivals: ArrivalRate,
        max_step_tokens: int,
    ) -> None:
        """`arrivals` are those of prompts, on all cores of the device."""
        self._control = control
        self._queues = queues
        self._residency = residency
        self._arrivals = arrivals
        self._max_step_tokens = max_step_tokens
        self._margins = ForecastMargins()
        self._noted_decodes_s = self._noted_share = 0.0
        self._tiers: dict[str, tuple[float, float]] = {}
        """Time to the first token that a tier promises, and when a request of it came last."""

    def note_running(self, decodes: StepShape, token_s: float) -> None:
        """A step is being planned; `decodes` is the shape of all those that decode, and the most
        demanding of them needs a token every `token_s`."""
        self._noted_decodes_s = self._noted_share = 0.0
        if token_s < inf:
            # Where latency-sensitive requests need the host's cores they get them.
            self._noted_decodes_s = self._control.costs_alone.step_s(decodes)
            self._noted_share = self._noted_decodes_s / token_s

    @property
    def _decode_share(self) -> float:
        return self._noted_share if self._decodes_s else 0.0

    @property
    def _decodes_s(self) -> float:
        """Of a step with all that decode."""
        # Behind the last of them no step may be planned that would tell.
        is_running = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
        return self._noted_decodes_s if is_running else 0.0

    @property
    def load(self) -> UrgentLoad:
        """Of the requests that are there; nothing where step times are not known."""
        if not self._control.is_predicting:
            return UrgentLoad()
        return UrgentLoad(self._queued_s(), self._decode_share)

    @property
    def is_idle(self) -> bool:
        """Whether no latency-sensitive request is there."""
        service_class = ServiceClass.LATENCY_SENSITIVE
        return not (self._queues.running[service_class] or self._queues.waiting[service_class])

    def ttft_s(self, request: Request, now_s: float, others: Iterable[UrgentLoad] = ()) -> float:
        """From the arrival of a new request on, if it is added now; `others` are the loads of
        other models on the device. Infinite where all the memory there is is held or awaited; 0
        where nothing is known of step times."""
        if not self._control.is_predicting:
            return 0.0
        if self._lacks_memory_for(request):
            return inf
        own_s = self._prefill_s(request, self._residency.num_cached(request))
        ready_s = self._control.urgent_residual_s(now_s)
        ready_s += self._queue_s(self._queued_s() + own_s, now_s, others)
        margin = self._margins.of(request.tier, now_s)
        waited_s = max(0.0, now_s - request.arrival_s)
        request.expected_prefill_s, request.expected_ttft_s = own_s, waited_s + ready_s
        return waited_s + margin * ready_s

    def _queue_s(self, prompts_s: float, now_s: float, others: Iterable[UrgentLoad]) -> float:
        """Until prompts that take so long by themselves are computed, beside whatever decodes."""
        share = 0.0
        for other in others:
            prompts_s, share = prompts_s + other.prompts_s, share + other.decode_share
        decode_share = self._decode_share
        if share + self.needed_share(now_s) >= _OVERLOAD:
            # Decodes must keep their pace: what they lend now would not be given back.
            share += decode_share
        else:
            # In a hurry prompts go first, with a token for each decode in every step.
            prompts_s += self._decodes_s
        return prompts_s / max(LEAST_PROMPT_SHARE, 1.0 - share)

    def needed_share(self, now_s: float) -> float:
        return self._decode_share + self._arrivals.of(now_s)

    def is_overloaded(self, now_s: float) -> bool:
        """Whether decodes and prompts, at the rate at which they come, need more than there is, so
        that what decodes lend would not be given back."""
        return self.needed_share(now_s) >= _OVERLOAD

    def spare_s(self, starts_s: float) -> float:
        """Time that others may take from `starts_s` on before the prompts that are here, one after
        the other beside the decodes, so that each is in time; infinite without any.

        Requests that are late whatever happens hold up nobody.
        """
        if not self._control.is_predicting:
            return inf
        stretch = 1.0 / max(LEAST_PROMPT_SHARE, 1.0 - self._decode_share)
        least_s, ready_s = inf, starts_s
        for request in islice(self._awaited(), _MOST_AWAITED):
            left_s = stretch * _left_s(request)
            if request.objectives is None or not left_s:
                continue
            spare_s = request.arrival_s + request.objectives.ttft_s - ready_s - left_s
            # A little late may still be in time: the forecast is not that good. Who is later than
            # that does not go first, and so takes nothing from those behind.
            if spare_s > -_HOPELESS_SHARE * request.objectives.ttft_s:
                least_s = min(least_s, max(0.0, spare_s))
                ready_s += left_s
        return least_s

    def _awaited(self) -> Iterator[Request]:
        service_class = ServiceClass.LATENCY_SENSITIVE
        for queue in (self._queues.running[service_class], self._queues.waiting[service_class]):
            yield from (each for each in queue if each.first_token_s is None)

    def note_arrival(self, request: Request) -> None:
        """A request is added, with or without having been asked about."""
        if request.objectives is None or not self._control.is_predicting:
            return
        self._tiers[request.tier] = (request.objectives.ttft_s, request.arrival_s)
        if request.expected_prefill_s is None:
            num_cached = self._residency.num_cached(request)
            request.expected_prefill_s = self._prefill_s(request, num_cached)

    def tightest_s(self, now_s: float) -> float:
        """Time to the first token that the most demanding of the requests that may come at any
        moment is promised; infinite where none came lately."""
        lately = (ttft_s for ttft_s, last_s in self._tiers.values() if now_s - last_s < _LATELY_S)
        return min(lately, default=inf)

    def note_first_token(self, request: Request) -> None:
        """It is there: forecasts for its tier are believed more or less from now on."""
        expected_s, first_s = request.expected_ttft_s, request.first_token_s
        if expected_s is not None and first_s is not None and request.objectives is not None:
            measured_s = first_s - request.arrival_s
            self._margins.note(
                request.tier,
                request.objectives,
                forecast_s=expected_s,
                measured_s=measured_s,
                now_s=first_s,
            )

    def _lacks_memory_for(self, request: Request) -> bool:
        service_class = ServiceClass.LATENCY_SENSITIVE
        running, waiting = self._queues.running[service_class], self._queues.waiting[service_class]
        if not waiting and self._residency.has_free_for(request):
            return False
        return self._residency.lacks_blocks_for([*running, *waiting, request])

    def _queued_s(self) -> float:
        service_class = ServiceClass.LATENCY_SENSITIVE
        running, waiting = self._queues.running[service_class], self._queues.waiting[service_class]
        running_s = sum(
            self._prefill_s(each, each.num_scheduled)
            for each in running
            if each.num_scheduled < each.num_prompt_tokens
        )
        return running_s + sum(each.expected_prefill_s or 0.0 for each in waiting)

    def _prefill_s(self, request: Request, num_done: int) -> float:
        num_left = len(request.token_ids) - num_done
        return prefill_s(self._control.costs_alone, num_done, num_left, self._max_step_tokens)


def _left_s(request: Request) -> float:
    """Of what its prompt was expected to take, what is not planned yet."""
    num_tokens = len(request.token_ids)
    num_left = num_tokens - request.num_scheduled
    num_wanted = max(1, num_tokens - request.num_cached_tokens)
    return (request.expected_prefill_s or 0.0) * min(1.0, max(0, num_left) / num_wanted)
