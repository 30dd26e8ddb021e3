"""The load of one engine, in its own process: latency-sensitive bursts beside best-effort work."""

import random
import time
from dataclasses import dataclass, field
from typing import Any

from piggyback_cases import Load
from piggyback_placed import PLACED_TIER

from omniserve.engine.core import Engine
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams, ServiceClassName

MODEL = "bench"
_COMPUTED_TIER = "computed"
# Special tokens come first in the vocabulary; prompts hold none.
_FIRST_PLAIN_TOKEN = 256
_IDLE_S = 0.0005
_TIMEOUT_S = 120.0


class Prompts:
    """Prompts of which no two share a KV block, cheap enough to be made amid a measurement."""

    def __init__(self, vocab_size: int, longest: int) -> None:
        self._range = range(_FIRST_PLAIN_TOKEN, vocab_size)
        self._tokens = tuple(random.Random(longest).choices(self._range, k=longest))
        self._num_made = 0

    def make(self, length: int) -> tuple[int, ...]:
        self._num_made += 1
        first, second = divmod(self._num_made, len(self._range))
        return (self._range[first], self._range[second], *self._tokens[: length - 2])


@dataclass(slots=True)
class Seen:
    """What requests produced since the measurement began."""

    ls_gaps_s: list[float] = field(default_factory=list)
    """Between two tokens of one latency-sensitive request."""
    be_tokens: int = 0


class Traffic:
    """Keeps an engine's requests of both classes at their numbers."""

    def __init__(self, engine: Engine, load: Load, context: int) -> None:
        longest = max(load.be_total(context), load.ls_total)
        self._engine = engine
        self._load = load
        self._context = context
        self._prompts = Prompts(engine.models[0].vocab_size, longest)
        self._last_token_s: dict[str, float | None] = {}
        """By latency-sensitive request."""
        self._best_effort: dict[str, bool] = {}
        """Whether a request had its first token."""
        self._num_added = 0
        self.has_latency_sensitive = False
        """Whether latency-sensitive requests are kept at their number."""
        self.seen = Seen()

    def fill(self, num_best_effort: int) -> None:
        """Adds best-effort requests up to that number, and steps until all have a token.

        They are at different points of their output, so that some end at any time.
        """
        first, added = len(self._best_effort), num_best_effort - len(self._best_effort)
        for index in range(added):
            output = 1 + (self._load.be_output - 1) * (index + 1) // added
            self._add_best_effort(output)
        deadline_s = time.perf_counter() + _TIMEOUT_S
        while not all(self._best_effort.values()):
            self.step()
            if time.perf_counter() > deadline_s:
                started = sum(self._best_effort.values())
                raise TimeoutError(f"{started} of {first + added} requests started")

    def run(self, seconds: float, duty: float, period_s: float) -> None:
        """Steps for so long; latency-sensitive work is there for `duty` of every period."""
        start_s = time.perf_counter()
        while (elapsed_s := time.perf_counter() - start_s) < seconds:
            if elapsed_s % period_s < duty * period_s:
                self.has_latency_sensitive = True
            else:
                self.quieten()
            self.step()

    def quieten(self) -> None:
        """Ends the latency-sensitive requests."""
        self.has_latency_sensitive = False
        for request_id in self._last_token_s:
            self._engine.abort(request_id)
        self._last_token_s.clear()

    def prefill(self, context: int) -> float:
        """Seconds in which a best-effort prompt is really computed, amid what else there is."""
        request_id = self._add("best_effort", _COMPUTED_TIER, context, 1)
        start_s = time.perf_counter()
        while all(output.request_id != request_id for output in self.step()):
            pass
        return time.perf_counter() - start_s

    def step(self) -> list[RequestOutput]:
        while self.has_latency_sensitive and len(self._last_token_s) < self._load.ls_requests:
            self._add_latency_sensitive()
        outputs = self._engine.step()
        now_s = time.perf_counter()
        for output in outputs:
            self._note(output, now_s)
        if not outputs and not self._engine.has_unfinished:
            time.sleep(_IDLE_S)
        return outputs

    def _note(self, output: RequestOutput, now_s: float) -> None:
        if output.error is not None:
            raise RuntimeError(f"request {output.request_id}: {output.error}")
        request_id, ended = output.request_id, output.finish_reason is not None
        if request_id in self._last_token_s:
            last_s = self._last_token_s.pop(request_id)
            if last_s is not None:
                self.seen.ls_gaps_s.append(now_s - last_s)
            if not ended:
                self._last_token_s[request_id] = now_s
        elif request_id in self._best_effort:
            self.seen.be_tokens += len(output.token_ids)
            self._best_effort[request_id] = True
            if ended:
                del self._best_effort[request_id]
                self._add_best_effort(self._load.be_output)

    def _add_latency_sensitive(self) -> None:
        load = self._load
        request_id = self._add("latency_sensitive", PLACED_TIER, load.ls_context, load.ls_output)
        self._last_token_s[request_id] = None

    def _add_best_effort(self, max_tokens: int) -> None:
        request_id = self._add("best_effort", PLACED_TIER, self._context, max_tokens)
        self._best_effort[request_id] = False

    def _add(self, service_class: ServiceClassName, tier: str, context: int, output: int) -> str:
        """A greedy request whose prompt is one token longer than its context."""
        self._num_added += 1
        request_id = f"{service_class}-{self._num_added}"
        fields: dict[str, Any] = {"temperature": 0.0, "max_tokens": output, "ignore_eos": True}
        self._engine.add(
            EngineRequest(
                request_id=request_id,
                model=MODEL,
                prompt_token_ids=self._prompts.make(context + 1),
                sampling=SamplingParams(**fields),
                service_class=service_class,
                tier=tier,
            )
        )
        return request_id
