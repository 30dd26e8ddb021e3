"""What the latency-sensitive requests of one model want of the device, at any moment."""

from scheduler.first_token_forecast import FirstTokenForecast
from scheduler.first_tokens import FirstTokens
from scheduler.interleaving import Claim
from scheduler.queues import RequestQueues
from scheduler.request import ServiceClass
from scheduler.step_control import StepControl
from scheduler.step_planner import StepPlanner


class UrgentClaim:
    """Found anew only once something has changed: asking between two layers takes hardly any time.

    Whoever changes anything that it goes by says `forget`.
    """

    def __init__(
        self,
        queues: RequestQueues,
        first_tokens: FirstTokens,
        control: StepControl,
        planner: StepPlanner,
        forecast: FirstTokenForecast,
    ) -> None:
        self._queues = queues
        self._first_tokens = first_tokens
        self._control = control
        self._planner = planner
        self._forecast = forecast
        self._found: Claim | None = None
        """As it was found last, while nothing has changed since."""

    def forget(self) -> None:
        """Requests may be able to do more, or less, than before."""
        self._found = None

    @property
    def is_any(self) -> bool:
        """Whether latency-sensitive requests are waiting or running, with or without a next row."""
        service_class = ServiceClass.LATENCY_SENSITIVE
        return bool(self._queues.running[service_class] or self._queues.waiting[service_class])

    @property
    def awaits_first_token(self) -> bool:
        """Whether a step made now can bring one of them nearer its first token."""
        running = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
        return self._first_tokens.can_come_closer(running)

    def at(self, now_s: float) -> Claim | None:
        """None where there are no such requests."""
        if not self.is_any:
            return None
        if self._found is None:
            running = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
            decodes = [each for each in running if each.is_decoding]
            allowed, decodes_s = self._control.decodes_claim(decodes, now_s)
            self._found = Claim(
                self.awaits_first_token,
                now_s + allowed.by_all_s - decodes_s,
                now_s + self._forecast.spare_s(now_s),
                decodes_s + self._forecast.next_chunk_s(),
                self._planner.lead_s(allowed, now_s) if decodes else 0.0,
            )
        return self._found
