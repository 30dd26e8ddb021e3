"""Requests that are here, and those that were refused lately."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from omniserve.calls.refusal_reason import refusal_reason
from omniserve.errors import retry_after_s_of

MAX_REFUSALS = 50
MAX_REASON_CHARS = 300
MAX_SHOWN_REQUESTS = 200


@dataclass(frozen=True, slots=True)
class RequestStanding:
    """How far a request has come."""

    request_id: str
    engine_id: str
    """What the engine's ids of its sequences begin with; empty before it is sent there."""
    model: str
    tier: str
    tenant: str
    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_piggybacked_tokens: int


class StandingRequest(Protocol):
    """A request as long as it is here."""

    @property
    def standing(self) -> RequestStanding: ...


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A request that ended before it had a token, because the server would not have it."""

    at_s: float
    request_id: str
    model: str
    tier: str
    tenant: str
    reason: str
    retry_after_s: float | None
    """None where sending it again would not help."""


class RequestBoard:
    """Is told when requests come and end; keeps nothing of those that were served."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._here: dict[StandingRequest, None] = {}
        self._refusals: deque[RefusedRequest] = deque(maxlen=MAX_REFUSALS)

    def __len__(self) -> int:
        """Requests that are here."""
        return len(self._here)

    def begin(self, request: StandingRequest) -> None:
        """It is here from now on; `end` is owed."""
        self._here[request] = None

    def end(self, request: StandingRequest, error: BaseException | None) -> None:
        """It is here no more, and why; without an error it has all that it asked for."""
        self._here.pop(request, None)
        if error is None or refusal_reason(error) is None:
            return
        standing = request.standing
        if not standing.num_output_tokens:
            self.note_refusal(
                error,
                request_id=standing.request_id,
                model=standing.model,
                tier=standing.tier,
                tenant=standing.tenant,
            )

    def note_refusal(
        self,
        error: BaseException,
        *,
        request_id: str = "",
        model: str = "",
        tier: str = "",
        tenant: str = "",
    ) -> None:
        """Also for whoever refuses a call before it is a request; what is not known stays empty."""
        reason = str(error)
        if len(reason) > MAX_REASON_CHARS:
            reason = reason[: MAX_REASON_CHARS - 1] + "…"
        refused = RefusedRequest(
            self._clock(), request_id, model, tier, tenant, reason, retry_after_s_of(error)
        )
        self._refusals.append(refused)

    def oldest(self, at_most: int = MAX_SHOWN_REQUESTS) -> list[RequestStanding]:
        """Of the requests that are here, those that came first."""
        return [request.standing for request in islice(self._here, at_most)]

    @property
    def refusals(self) -> list[RefusedRequest]:
        """The newest first."""
        return list(reversed(self._refusals))
