"""What one client request did and how long it took: its metrics, and a summary for the log."""

import time
from collections.abc import Callable, Sequence
from math import inf

from omniserve.access.quotas import Charge
from omniserve.calls.call_record import current_call
from omniserve.calls.outcome import outcome_of
from omniserve.calls.request_summary import RequestSummary
from omniserve.errors import (
    EngineError,
    EngineUnavailable,
    OmniServeError,
    Overloaded,
    QuotaExceeded,
)
from omniserve.front_notes import RequestNotes
from omniserve.generation import Prompt, Usage
from omniserve.metrics import Metrics, Outcome
from omniserve.model_life.requests_here import ModelLease
from omniserve.promise import Promise
from omniserve.reload.arrivals import Arrival
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.status.request_board import RequestBoard, RequestStanding

_COUNT_EVERY_S = 0.25
"""How often tokens of one request reach their counters while it runs."""

_JUDGED = frozenset({"ok", "late", "error"})
"""Outcomes of requests that count as having met their objectives, or not."""

_REFUSALS = (Overloaded, EngineUnavailable, EngineError)
"""By the server, of what it had taken: a tenant is not charged for prompts that came to nothing."""


class RequestRecord:
    """Counts one request from its arrival on. Model and tier are filled in once they are known."""

    def __init__(
        self,
        metrics: Metrics,
        request_id: str,
        prompts: tuple[Prompt, ...],
        arrival_s: float,
        clock: Callable[[], float] = time.monotonic,
        notes: RequestNotes | None = None,
        board: RequestBoard | None = None,
    ) -> None:
        """`request_id` is as it may be shown.

        `notes` are told what the front does with the request, for whoever asks later. `board`
        shows it as long as it is here, so `end` must be called.
        """
        self._notes = notes or RequestNotes()
        self._notes.add(arrival_s, "received")
        self.request_id = request_id
        self.model = ""
        self.tier = ""
        """The one that the client sent it for, by which it is counted."""
        self.fallback = ""
        """The tier that took it over, or one of its sequences."""
        self.tenant = ""
        """Whose it is, once that is known."""
        self._metrics = metrics
        self._prompts = prompts
        self._texts: dict[int, list[str]] = {}
        self._arrival_s = arrival_s
        self._clock = clock
        self._num_prompt_tokens: tuple[int, ...] = ()
        self._num_choices_each = 1
        self._num_cached_tokens = 0
        self._first_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        self._num_output_tokens: dict[int, int] = {}
        self._num_piggybacked_tokens: dict[int, int] = {}
        self._num_uncounted_tokens = 0
        self._num_counted_piggybacked = 0
        self._count_due_s = -inf
        self._promise: Promise | None = None
        self.lease: ModelLease | None = None
        """Its claim on the model, once that is known."""
        self._charge: Charge | None = None
        """None where nobody keeps a quota of it."""
        self._arrivals: Sequence[Arrival] = ()
        self._has_ended = False
        self._engine_id = ""
        self._board = RequestBoard() if board is None else board
        self._board.begin(self)
        self._call = current_call()
        self._call.request_id = request_id

    def start(self, num_prompt_tokens: tuple[int, ...], num_choices_each: int) -> None:
        """The prompts are tokenised; `num_choices_each` sequences continue each of them."""
        self._num_prompt_tokens = num_prompt_tokens
        self._num_choices_each = num_choices_each
        num_sequences = len(num_prompt_tokens) * num_choices_each
        detail = f"{sum(num_prompt_tokens)} prompt tokens, sequences to generate: {num_sequences}"
        self._notes.add(self._clock(), "tokenised", "", detail)
        tokens = self._metrics.tokens
        self._output_counter = tokens.labels(self.model, self.tier, "output")
        self._piggybacked_counter = tokens.labels(self.model, self.tier, "piggybacked")

    def note(self, event: str, reason: str, detail: str) -> None:
        """The front did something with it that whoever asks later is to be told."""
        self._notes.add(self._clock(), event, reason, detail)

    def charge_to(self, charge: Charge) -> None:
        """Its tenant's quota has let it enter, and is to be told what becomes of it."""
        self._charge = charge

    def on_tokenised(self, num_tokens: int) -> None:
        """A text of its prompts has so many tokens, whatever becomes of it."""
        if self._charge is not None:
            self._charge.on_tokenised(num_tokens)

    def take_input(self) -> None:
        """Its prompts count against the quota from now on; raises QuotaExceeded."""
        if self._charge is not None:
            self._charge.take_input(sum(self._num_prompt_tokens))
            self._notes.add(self._clock(), "quota", "", self._charge.describe())

    def hold_to(self, sequence: EngineRequest) -> None:
        """What is promised to this one, as to all sequences of the request, is to be kept."""
        self._promise = Promise(self._arrival_s, sequence)
        self._engine_id = sequence.request_id.rpartition("#")[0]

    def tell_lengths(self, arrivals: Sequence[Arrival]) -> None:
        """At the end each sequence's arrival is told how many tokens it had."""
        self._arrivals = arrivals

    def on_first_token_taken(self) -> None:
        """The first chunk with a token goes out to the client."""
        self._notes.add(self._clock(), "first token sent")

    def on_output(self, index: int, output: RequestOutput) -> None:
        """The engine gave this output of choice `index`."""
        if output.tier:
            self.fallback = output.tier
        now = self._clock()
        if output.token_ids:
            if self._promise is not None:
                self._promise.note(index, output, now)
            if not self._first_s:
                self._metrics.ttft.labels(self.model, self.tier).observe(now - self._arrival_s)
            if index not in self._first_s:
                self._first_s[index] = now
                self._count_prompt(index, output)
                if self._charge is not None:
                    self._charge.on_first_token()
            self._last_s[index] = now
            self._num_uncounted_tokens += len(output.token_ids)
        elif output.finish_reason is not None and index not in self._first_s:
            if self._charge is not None:
                self._charge.stop_waiting(1)
        self._num_output_tokens[index] = output.num_output_tokens
        if output.num_piggybacked_tokens:
            self._num_piggybacked_tokens[index] = output.num_piggybacked_tokens
        self._texts.setdefault(index, []).append(output.text)
        if now >= self._count_due_s:
            self._count_due_s = now + _COUNT_EVERY_S
            self._count_tokens()

    def on_failure(self) -> None:
        """Nothing more will be generated; `end` follows when the client has taken what was."""
        if self._charge is not None:
            self._charge.on_failure()

    def _count_tokens(self) -> None:
        """Tokens since the last time; a counter takes longer than all the rest of an output."""
        if not self._num_uncounted_tokens:
            return
        num_piggybacked = sum(self._num_piggybacked_tokens.values())
        self._output_counter.inc(self._num_uncounted_tokens)
        if self._charge is not None:
            self._charge.on_output(self._num_uncounted_tokens)
        self._piggybacked_counter.inc(num_piggybacked - self._num_counted_piggybacked)
        self._num_uncounted_tokens, self._num_counted_piggybacked = 0, num_piggybacked

    def _count_prompt(self, index: int, output: RequestOutput) -> None:
        """Every prompt counts once, with its first choice."""
        prompt, choice = divmod(index, self._num_choices_each)
        if choice:
            return
        counter = self._metrics.tokens
        counter.labels(self.model, self.tier, "prompt").inc(self._num_prompt_tokens[prompt])
        counter.labels(self.model, self.tier, "cached").inc(output.num_cached_tokens)
        self._num_cached_tokens += output.num_cached_tokens

    @property
    def standing(self) -> RequestStanding:
        usage = self.usage
        return RequestStanding(
            request_id=self.request_id,
            engine_id=self._engine_id,
            model=self.model,
            tier=self.fallback or self.tier,
            tenant=self.tenant,
            arrival_s=self._arrival_s,
            num_prompt_tokens=usage.num_prompt_tokens,
            num_output_tokens=usage.num_output_tokens,
            num_piggybacked_tokens=usage.num_piggybacked_tokens,
        )

    @property
    def usage(self) -> Usage:
        return Usage(
            num_prompt_tokens=sum(self._num_prompt_tokens),
            num_cached_tokens=self._num_cached_tokens,
            num_output_tokens=sum(self._num_output_tokens.values()),
            num_piggybacked_tokens=sum(self._num_piggybacked_tokens.values()),
        )

    def end(self, error: BaseException | None) -> None:
        """The request is over; only the first call counts."""
        if self._has_ended:
            return
        self._has_ended = True
        self._count_tokens()
        outcome = outcome_of(error)
        if self._charge is not None:
            had_nothing = isinstance(error, _REFUSALS) and not self._first_s
            self._charge.close(had_nothing=had_nothing)
        if self.lease is not None:
            self.lease.close()
        self._board.end(self, error)
        self._note_end(outcome, error)
        e2e_s = self._clock() - self._arrival_s
        tpot_s = self._tpot_s()
        if outcome == "ok":
            self._metrics.e2e.labels(self.model, self.tier).observe(e2e_s)
            if tpot_s is not None:
                self._metrics.tpot.labels(self.model, self.tier).observe(tpot_s)
        self._metrics.requests.labels(self.model, self.tier, outcome).inc()
        if self._promise is not None:
            self._judge(self._promise, outcome)
        for index, arrival in enumerate(self._arrivals):
            arrival.note_length(self._num_output_tokens.get(index, 0))
        self._call.tenant = self.tenant or self._call.tenant
        self._call.request = self._summary(outcome, e2e_s, tpot_s)

    def _note_end(self, outcome: Outcome, error: BaseException | None) -> None:
        detail = ""
        # Anything else may hold text of the request.
        if isinstance(error, OmniServeError):
            detail = str(error)
            error.request_id = self.request_id
        if isinstance(error, QuotaExceeded):
            self._notes.add(self._clock(), "quota", error.quota, detail)
        self._notes.add(self._clock(), "ended", outcome, detail)

    def _judge(self, promise: Promise, outcome: Outcome) -> None:
        verdict = promise.verdict(is_complete=outcome == "ok")
        if verdict is not None and outcome in _JUDGED:
            self._metrics.attainment.note(self.model, self.tier, verdict)
        if outcome == "ok" and promise.is_kept:
            num_tokens = self.usage.num_output_tokens
            self._metrics.goodput.labels(self.model, self.tier).inc(num_tokens)

    def _tpot_s(self) -> float | None:
        """Mean over the choices of the mean time per token after the first."""
        means = [
            (self._last_s[index] - first_s) / (self._num_output_tokens[index] - 1)
            for index, first_s in self._first_s.items()
            if self._num_output_tokens[index] > 1
        ]
        return sum(means) / len(means) if means else None

    def _summary(self, outcome: Outcome, e2e_s: float, tpot_s: float | None) -> RequestSummary:
        return RequestSummary(
            model=self.model,
            tier=self.tier,
            fallback=self.fallback,
            outcome=outcome,
            usage=self.usage,
            ttft_s=min(self._first_s.values()) - self._arrival_s if self._first_s else None,
            tpot_s=tpot_s,
            e2e_s=e2e_s,
            decisions=self._notes.decisions,
            was_sent_on=self._promise is not None,
            prompts=self._prompts,
            outputs=self._texts,
        )
