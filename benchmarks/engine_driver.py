"""What a worker process of benchmarks/engine.py does, the same for every engine it measures.

Standard library only: it runs in the environment of whichever engine is measured. Commands and
answers are JSON lines on the real stdin and stdout; whatever the engine prints goes to stderr.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class MeasuredEngine(Protocol):
    """An engine driven step by step in its own process."""

    def describe(self) -> dict[str, str]:
        """Name and versions for the report."""

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        """Queue a greedy request that ignores end-of-sequence."""

    def step(self) -> dict[str, int]:
        """Run one step to the end, detokenised text included; tokens that each request gained."""

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget these requests, finished ones included."""

    def has_unfinished(self) -> bool: ...

    def take_timings(self) -> dict[str, float]:
        """Seconds per phase since the last call; empty where the engine does not say."""


def measure_decode(
    engine: MeasuredEngine, prompts: Sequence[Sequence[int]], num_steps: int
) -> dict[str, Any]:
    """Times `num_steps` decode steps of all prompts together, once each has its first token."""
    # Early requests decode while late ones prefill, so each may run longer than the timed window.
    max_tokens = num_steps + len(prompts) + sum(map(len, prompts)) // 256 + 16
    counts = _add_all(engine, prompts, max_tokens)
    _step_until(engine, counts, 1)
    gc.collect()
    engine.take_timings()
    before = dict(counts)
    steps = 0
    start = time.perf_counter()
    while any(counts[name] < before[name] + num_steps for name in counts):
        _count(counts, engine.step())
        steps += 1
    seconds = time.perf_counter() - start
    num_tokens = sum(counts.values()) - sum(before.values())
    if num_tokens != num_steps * len(prompts):
        raise RuntimeError(f"batch fell apart: {num_tokens} tokens, not {num_steps * len(prompts)}")
    timings = engine.take_timings()
    _finish(engine, counts)
    return {"seconds": seconds, "tokens": num_tokens, "steps": steps, "timings": timings}


def measure_prefill(engine: MeasuredEngine, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Seconds from the first request added to the last one's first token."""
    gc.collect()
    engine.take_timings()
    start = time.perf_counter()
    counts = _add_all(engine, prompts, 1)
    steps = _step_until(engine, counts, 1)
    seconds = time.perf_counter() - start
    timings = engine.take_timings()
    _finish(engine, counts)
    num_tokens = sum(map(len, prompts))
    return {"seconds": seconds, "tokens": num_tokens, "steps": steps, "timings": timings}


def _add_all(
    engine: MeasuredEngine, prompts: Sequence[Sequence[int]], max_tokens: int
) -> dict[str, int]:
    names = [f"{time.monotonic_ns()}-{index}" for index in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        engine.add(name, prompt, max_tokens)
    return dict.fromkeys(names, 0)


def _step_until(engine: MeasuredEngine, counts: dict[str, int], num_tokens: int) -> int:
    steps = 0
    while min(counts.values()) < num_tokens:
        _count(counts, engine.step())
        steps += 1
    return steps


def _count(counts: dict[str, int], gained: dict[str, int]) -> None:
    for name, num_tokens in gained.items():
        counts[name] += num_tokens


def _finish(engine: MeasuredEngine, counts: dict[str, int]) -> None:
    engine.abort(list(counts))
    while engine.has_unfinished():
        engine.step()


def serve(load: Callable[[dict[str, Any]], MeasuredEngine]) -> None:
    """Answer commands until stdin ends; the first one holds the settings for `load`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = load(json.loads(sys.stdin.readline()))
    _answer(answers, engine.describe())
    for line in sys.stdin:
        command = json.loads(line)
        if command["kind"] == "decode":
            result = measure_decode(engine, command["prompts"], command["num_steps"])
        else:
            result = measure_prefill(engine, command["prompts"])
        _answer(answers, result)
    # Engines leave threads behind that make an orderly exit slow or noisy.
    os._exit(0)


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
