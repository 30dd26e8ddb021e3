"""Steps as traffic makes them: arrivals of both classes at random, the same in every round."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from omniserve.profiling.cases import Limits
from omniserve.profiling.messages import StepSample
from omniserve.profiling.timed_engine import TimedEngine
from omniserve.requests import ServiceClassName


@dataclass(frozen=True, slots=True)
class Medley:
    """A mix of requests; what a step costs depends on what ran before it, as caches do."""

    num_best_effort: int
    """That are always there, and follow each other."""
    arrival_chance: float
    """Of a latency-sensitive request, before each step."""
    num_steps: int
    longest_prompt: int
    longest_output: int
    seed: int = 0


def medleys(limits: Limits) -> list[Medley]:
    """Without a backlog, with a small one, and with one that fills half of the slots."""
    half = limits.max_running_requests // 2
    share = limits.kv_tokens // (4 * max(1, half))
    longest = min(limits.max_step_tokens, limits.max_model_len // 4, share)
    if longest < 8:
        return []
    return [
        Medley(num, chance, 150, longest_prompt=longest, longest_output=max(4, longest // 8))
        for num, chance in ((0, 0.05), (min(8, half), 0.03), (half, 0.03))
        if not (num and limits.may_offload)
    ]


def run_medley(engine: TimedEngine, index: int, medley: Medley) -> Iterator[StepSample]:
    """Times of arrival are steps, so that every round has the same ones."""
    draw = random.Random(medley.seed)
    backlog: list[_Wanted] = []
    for place in range(medley.num_steps):
        backlog = [each for each in backlog if engine.tokens_of(each.request_id) < each.tokens]
        while len(backlog) < medley.num_best_effort:
            backlog.append(_add(engine, medley, draw, "best_effort"))
        if draw.random() < medley.arrival_chance or not engine.engine.has_unfinished:
            _add(engine, medley, draw, "latency_sensitive")
        for step in engine.steps(1):
            yield step.sample(index, place)


@dataclass(frozen=True, slots=True)
class _Wanted:
    request_id: str
    tokens: int


def _add(
    engine: TimedEngine, medley: Medley, draw: random.Random, service_class: ServiceClassName
) -> _Wanted:
    # Many short ones and some long: evenly spread by their logarithm.
    prompt = round(medley.longest_prompt ** draw.uniform(0.4, 1.0))
    output = draw.randint(2, medley.longest_output)
    return _Wanted(engine.add(prompt, output, service_class), output)
