"""Random schedules: who arrives when, who is cancelled when, and what befalls the host."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from engine_builders import GREEDY, Collected, make_request
from piggyback_builders import Fleet
from piggyback_references import MAX_TOKENS, References
from piggyback_troubles import HostTroubles

from omniserve.requests import EngineRequest, RequestOutput, SamplingParams, ServiceClassName

NUM_REQUESTS = 9
_LAST_ARRIVAL = 40
_CANCELLED = 0.25
_MOST_STEPS = 1_000_000
"""Only a run that never ends takes so many: the engine's steps are short while it has no work."""


@dataclass(frozen=True)
class Visit:
    """A request of a schedule, and what its client does."""

    request: EngineRequest
    arrives_at_step: int
    between_layers: bool
    """Whether it comes, and is cancelled, amid a step."""
    cancelled_after: tuple[int, int] | None
    """So many tokens of its own, and then so many steps; None: it stays to the end."""


@dataclass(frozen=True)
class Schedule:
    name: str
    visits: tuple[Visit, ...]


def make_schedule(name: str, models: Sequence[tuple[str, References]], seed: int) -> Schedule:
    """Requests for `models` (their names, with the references of their prompts)."""
    rng = random.Random(f"schedule {name} {seed}")
    spread = rng.choice([0, 8, _LAST_ARRIVAL])
    latency_sensitive = rng.choice([0.0, 0.3, 0.6])
    visits = []
    for index in range(NUM_REQUESTS):
        model, references = rng.choice(models)
        prompt = rng.choice(references.prompts)
        sampling = _random_sampling(rng, prompt, references)
        is_sensitive = rng.random() < latency_sensitive
        kind: ServiceClassName = "latency_sensitive" if is_sensitive else "best_effort"
        cancelled = rng.random() < _CANCELLED
        visits.append(
            Visit(
                make_request(f"{name}-{seed}-r{index}", prompt, sampling, kind, model),
                arrives_at_step=rng.randint(0, spread),
                between_layers=rng.random() < 0.3,
                cancelled_after=(rng.choice([0, 0, 1, 2, 6]), rng.randint(0, 12))
                if cancelled
                else None,
            )
        )
    return Schedule(f"{name}-{seed}", tuple(visits))


def _random_sampling(
    rng: random.Random, prompt: tuple[int, ...], references: References
) -> SamplingParams:
    greedy = replace(GREEDY, max_tokens=rng.choice([1, 2, 7, 12, MAX_TOKENS]))
    whole = replace(GREEDY, max_tokens=MAX_TOKENS)
    text = references.text(prompt)
    start = len(text) // 2
    seeded = SamplingParams(temperature=1.0, seed=len(prompt), ignore_eos=True, max_tokens=12)
    return rng.choice(
        [
            greedy,
            greedy,
            greedy,
            replace(greedy, logprobs=3),
            replace(whole, stop=(text[start : start + 3] or "?",)),
            replace(whole, stop_token_ids=(references.greedy(prompt)[MAX_TOKENS // 2],)),
            replace(whole, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3),
            replace(whole, logit_bias={rng.randint(5, 8): 4.0}, ignore_eos=False),
            replace(seeded, top_p=0.9, logprobs=0),
            replace(seeded, top_k=20, min_p=0.01, ignore_eos=False),
        ]
    )


class ScheduleRun:
    """Drives the engine through one schedule and collects what each request was told."""

    def __init__(
        self,
        fleet: Fleet,
        schedule: Schedule,
        troubles: HostTroubles | None = None,
    ) -> None:
        self.results = {visit.request.request_id: Collected() for visit in schedule.visits}
        self.num_piggybacked = Counter[str]()
        """Tokens that came out of the lanes, by request, as the engine says."""
        self.cancelled_ids: set[str] = set()
        self._fleet = fleet
        self._troubles = troubles
        self._waiting = sorted(schedule.visits, key=lambda visit: visit.arrives_at_step)
        self._present: list[Visit] = []
        self._countdown: dict[str, int] = {}
        self._amid_step: list[Callable[[], None]] = []

    def run(self) -> None:
        """Returns when every request has ended and nothing of them is left anywhere."""
        engine = self._fleet.engine
        self._fleet.at_layer_boundary = self._act_amid_step
        step = 0
        while self._waiting or self._amid_step or engine.has_unfinished:
            if self._troubles is not None:
                self._troubles.before_step(step)
            self._begin_visits(step)
            self._end_visits()
            for output in engine.step():
                self._collect(output)
            if step % 8 == 0:
                self._fleet.check_integrity()
            if not engine.has_unfinished:
                self._act_amid_step()
            step += 1
            assert step < _MOST_STEPS, "the engine makes no progress"
        if self._troubles is not None:
            self._troubles.end()
        self._fleet.settle()

    def _begin_visits(self, step: int) -> None:
        while self._waiting and self._waiting[0].arrives_at_step <= step:
            visit = self._waiting.pop(0)
            self._act(visit, partial(self._begin, visit))

    def _begin(self, visit: Visit) -> None:
        self._fleet.engine.add(visit.request)
        self._present.append(visit)

    def _end_visits(self) -> None:
        for visit in list(self._present):
            name = visit.request.request_id
            collected = self.results[name]
            if collected.finish_reason is not None:
                self._present.remove(visit)
            elif visit.cancelled_after is not None:
                num_tokens, num_steps = visit.cancelled_after
                if len(collected.token_ids) >= num_tokens:
                    left = self._countdown[name] = self._countdown.get(name, num_steps) - 1
                    if left < 0:
                        self._present.remove(visit)
                        self._act(visit, partial(self._cancel, name))

    def _cancel(self, name: str) -> None:
        if self.results[name].finish_reason is None:
            self.cancelled_ids.add(name)
            self._fleet.engine.abort(name)

    def _act(self, visit: Visit, action: Callable[[], None]) -> None:
        if visit.between_layers:
            self._amid_step.append(action)
        else:
            action()

    def _act_amid_step(self) -> None:
        actions, self._amid_step = self._amid_step, []
        for action in actions:
            action()

    def _collect(self, output: RequestOutput) -> None:
        collected = self.results[output.request_id]
        assert output.request_id not in self.cancelled_ids, "output after it was cancelled"
        assert collected.finish_reason is None, "output after the end"
        collected.token_ids += output.token_ids
        collected.text += output.text
        collected.logprobs += output.logprobs
        collected.finish_reason = output.finish_reason
        collected.stop_reason = output.stop_reason
        assert output.num_output_tokens == len(collected.token_ids)
        assert output.num_piggybacked_tokens <= output.num_output_tokens
        self.num_piggybacked[output.request_id] = output.num_piggybacked_tokens
