"""What one client request did and how long it took: its metrics and its one log line."""

import asyncio
import time
from collections.abc import Callable

from omniserve.errors import (
    ClientTooSlow,
    EngineUnavailable,
    InvalidRequest,
    RequestCancelled,
    UnknownModel,
)
from omniserve.generation import Prompt, Usage
from omniserve.logs import get_logger, log_event
from omniserve.metrics import Metrics, Outcome
from omniserve.requests import RequestOutput

_logger = get_logger(__name__)

_OUTCOMES: tuple[tuple[tuple[type[BaseException], ...], Outcome], ...] = (
    ((asyncio.CancelledError, GeneratorExit, RequestCancelled, ClientTooSlow), "cancelled"),
    ((InvalidRequest, UnknownModel), "invalid"),
    ((EngineUnavailable,), "unavailable"),
)


class RequestRecord:
    """Counts one request from its arrival on. Model and tier are filled in once they are known."""

    def __init__(
        self,
        metrics: Metrics,
        request_id: str,
        prompts: tuple[Prompt, ...],
        arrival_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request_id = request_id
        self.model = ""
        self.tier = ""
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
        self._has_ended = False

    def start(self, num_prompt_tokens: tuple[int, ...], num_choices_each: int) -> None:
        """The prompts are tokenised; `num_choices_each` sequences continue each of them."""
        self._num_prompt_tokens = num_prompt_tokens
        self._num_choices_each = num_choices_each
        tokens = self._metrics.tokens
        self._output_counter = tokens.labels(self.model, self.tier, "output")
        self._piggybacked_counter = tokens.labels(self.model, self.tier, "piggybacked")

    def on_output(self, index: int, output: RequestOutput) -> None:
        """The engine gave this output of choice `index`."""
        now = self._clock()
        if output.token_ids:
            if not self._first_s:
                self._metrics.ttft.labels(self.model, self.tier).observe(now - self._arrival_s)
            if index not in self._first_s:
                self._first_s[index] = now
                self._count_prompt(index, output)
            self._last_s[index] = now
            self._output_counter.inc(len(output.token_ids))
        self._num_output_tokens[index] = output.num_output_tokens
        before = self._num_piggybacked_tokens.get(index, 0)
        self._num_piggybacked_tokens[index] = output.num_piggybacked_tokens
        self._piggybacked_counter.inc(output.num_piggybacked_tokens - before)
        self._texts.setdefault(index, []).append(output.text)

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
        outcome = outcome_of(error)
        e2e_s = self._clock() - self._arrival_s
        tpot_s = self._tpot_s()
        if outcome == "ok":
            self._metrics.e2e.labels(self.model, self.tier).observe(e2e_s)
            if tpot_s is not None:
                self._metrics.tpot.labels(self.model, self.tier).observe(tpot_s)
        self._metrics.requests.labels(self.model, self.tier, outcome).inc()
        self._log(outcome, e2e_s, tpot_s)

    def _tpot_s(self) -> float | None:
        """Mean over the choices of the mean time per token after the first."""
        means = [
            (self._last_s[index] - first_s) / (self._num_output_tokens[index] - 1)
            for index, first_s in self._first_s.items()
            if self._num_output_tokens[index] > 1
        ]
        return sum(means) / len(means) if means else None

    def _log(self, outcome: Outcome, e2e_s: float, tpot_s: float | None) -> None:
        ttft_s = min(self._first_s.values()) - self._arrival_s if self._first_s else None
        usage = self.usage
        log_event(
            _logger,
            "request_ended",
            content={"prompts": self._prompts, "outputs": self._texts},
            request_id=self.request_id,
            model=self.model,
            tier=self.tier,
            outcome=outcome,
            prompt_tokens=usage.num_prompt_tokens,
            cached_tokens=usage.num_cached_tokens,
            output_tokens=usage.num_output_tokens,
            piggybacked_tokens=usage.num_piggybacked_tokens,
            ttft_ms=_milliseconds(ttft_s),
            tpot_ms=_milliseconds(tpot_s),
            e2e_ms=_milliseconds(e2e_s),
        )


def outcome_of(error: BaseException | None) -> Outcome:
    """The metrics label of how a request ended."""
    if error is None:
        return "ok"
    return next((outcome for kinds, outcome in _OUTCOMES if isinstance(error, kinds)), "error")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
