"""Whether an extra latency-sensitive step would bring a first token closer."""

from collections.abc import Iterable

from scheduler.preemption import Room
from scheduler.request import Request, ServiceClass


class FirstTokens:
    """Latency-sensitive requests that have not had their first token."""

    def __init__(self) -> None:
        self._awaiting_ids: set[str] = set()
        self.last_outcome = Room.ENOUGH
        """Where the last plan had to stop; ENOUGH again when something was freed since."""

    def expect(self, request: Request) -> None:
        if request.service_class is ServiceClass.LATENCY_SENSITIVE:
            self._awaiting_ids.add(request.request_id)

    def stop_expecting(self, request_id: str) -> None:
        """The token came, or the request ended without."""
        self._awaiting_ids.discard(request_id)

    def can_come_closer(self, running: Iterable[Request]) -> bool:
        """Whether one is awaited that is among `running` or may be admitted."""
        if not self._awaiting_ids or self.last_outcome is Room.IN_FLIGHT:
            return False
        if self.last_outcome is Room.ENOUGH:
            return True
        return any(request.request_id in self._awaiting_ids for request in running)
