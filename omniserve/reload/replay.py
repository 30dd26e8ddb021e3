"""What an engine would have done with past requests, had certain tiers been in force."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random

from omniserve.reload.forecast_messages import ForecastJob, PastRequest, TierOutcome
from omniserve.requests import TierSettings
from omniserve.simulate.agenda import Agenda
from omniserve.simulate.clock import Clock
from omniserve.simulate.fleet import Fleet
from omniserve.simulate.prompts import prompt_tokens
from scheduler import Request, ServiceClass


@dataclass(slots=True)
class _Seen:
    """What a client would have seen of its request."""

    tier: TierSettings
    arrival_s: float
    num_output_tokens: int
    num_tokens: int = 0
    num_paced_tokens: int = 0
    """Of them, those that its tier gives in time."""
    first_s: float = inf
    last_paced_s: float = inf
    is_refused: bool = False

    def note_token(self, now_s: float) -> None:
        if not self.num_tokens:
            self.first_s = now_s
        self.num_tokens += 1
        most = self.tier.rules.demote_after_tokens
        if most is None or self.num_tokens <= most:
            self.num_paced_tokens += 1
            self.last_paced_s = now_s

    @property
    def has_ended(self) -> bool:
        return self.is_refused or self.num_tokens == self.num_output_tokens

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Infinite where it did not come to its end."""
        if not self.has_ended or self.is_refused:
            return inf
        return (self.last_paced_s - self.first_s) / max(1, self.num_paced_tokens - 1)


class Replay:
    """One simulation, that is driven forward step by step."""

    def __init__(
        self,
        job: ForecastJob,
        tiers: Sequence[TierSettings],
        requests: Sequence[tuple[PastRequest, str]],
    ) -> None:
        """`requests` are in order of arrival, each with the name of its tier among `tiers`."""
        self._tiers = {tier.name: tier for tier in tiers}
        self._duration_s = job.duration_s
        self._clock = Clock()
        self._agenda = Agenda(self._clock)
        self._fleet = Fleet(
            1,
            job.settings,
            job.profiles,
            self._clock,
            self._agenda,
            Random(0),
            self._note_tokens,
            self._note_refused,
        )
        self._seen: dict[str, _Seen] = {}
        self._num_open = 0
        self._num_tokens_in_time = dict.fromkeys(self._tiers, 0)
        self._is_closed = False
        self._expect(iter(requests))

    def run_to(self, time_s: float) -> None:
        """Lets everything happen up to that time."""
        while (next_s := self._agenda.next_s) is not None and next_s <= time_s:
            self._agenda.do_next()

    def close(self, duration_s: float) -> None:
        """Nothing arrives any more; what came so far did in `duration_s`."""
        self._is_closed = True
        self._duration_s = duration_s

    @property
    def has_open_requests(self) -> bool:
        return self._num_open > 0

    @property
    def num_arrived(self) -> int:
        return len(self._seen)

    def outcomes(self) -> dict[str, TierOutcome]:
        """By tier. What has not ended did not meet its objectives."""
        by_tier: dict[str, list[_Seen]] = {name: [] for name in self._tiers}
        for seen in self._seen.values():
            by_tier[seen.tier.name].append(seen)
        return {name: self._outcome(self._tiers[name], each) for name, each in by_tier.items()}

    def _outcome(self, tier: TierSettings, requests: Sequence[_Seen]) -> TierOutcome:
        objectives, num = tier.objectives, len(requests)
        ttft = tpot = None
        if objectives is not None and num:
            ttft = sum(each.ttft_s <= objectives.ttft_s for each in requests) / num
            tpot = sum(each.tpot_s <= objectives.tpot_s for each in requests) / num
        return TierOutcome(
            num_requests=num,
            num_refused=sum(each.is_refused for each in requests),
            ttft_attainment=ttft,
            tpot_attainment=tpot,
            tokens_per_s=self._num_tokens_in_time[tier.name] / self._duration_s,
        )

    def _expect(self, requests: Iterator[tuple[PastRequest, str]]) -> None:
        """Enters the next request; one at a time keeps the agenda short."""
        entry = next(requests, None)
        if entry is not None:
            self._agenda.at(entry[0].at_s, partial(self._arrive, *entry, requests))

    def _arrive(
        self, past: PastRequest, tier: str, requests: Iterator[tuple[PastRequest, str]]
    ) -> None:
        if self._is_closed:
            return
        settings, now_s, number = self._tiers[tier], self._clock.now_s, len(self._seen)
        request = Request(
            request_id=f"past-{number}",
            service_class=ServiceClass(settings.service_class),
            tier=tier,
            arrival_s=now_s,
            token_ids=prompt_tokens(past.num_prompt_tokens, (), number),
            max_tokens=past.num_output_tokens,
            objectives=settings.objectives,
            demote_after_tokens=settings.rules.demote_after_tokens,
            fallback_tier=settings.rules.fallback,
        )
        self._seen[request.request_id] = _Seen(settings, now_s, past.num_output_tokens)
        self._num_open += 1
        self._fleet.submit(past.model, request, settings.rules)
        self._expect(requests)

    def _note_tokens(self, model: str, sampled: Sequence[str], finished: Sequence[Request]) -> None:
        now_s = self._clock.now_s
        for request_id in sampled:
            seen = self._seen[request_id]
            seen.note_token(now_s)
            if now_s <= self._duration_s:
                self._num_tokens_in_time[seen.tier.name] += 1
        self._num_open -= len(finished)

    def _note_refused(self, model: str, request: Request, error: Exception) -> None:
        self._seen[request.request_id].is_refused = True
        self._num_open -= 1
