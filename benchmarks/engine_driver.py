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
from statistics import mean
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


class Batch:
    """Requests that run together, from their prompts to the end."""

    def __init__(
        self, engine: MeasuredEngine, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> None:
        self._engine = engine
        self._prompt_tokens = mean(map(len, prompts))
        self._counts = {f"{time.monotonic_ns()}-{index}": 0 for index in range(len(prompts))}
        for name, prompt in zip(self._counts, prompts, strict=True):
            engine.add(name, prompt, max_tokens)

    @property
    def size(self) -> int:
        return len(self._counts)

    @property
    def mean_context(self) -> float:
        """Tokens of a request so far, prompt and output, in the mean."""
        return self._prompt_tokens + mean(self._counts.values())

    def prefill(self) -> int:
        """Step until every request has its first token; the number of steps."""
        return self._step_until(dict.fromkeys(self._counts, 1))

    def decode(self, num_steps: int) -> int:
        """Step until every request has `num_steps` more tokens; the number of steps.

        Raises:
            RuntimeError: one gained more than another.
        """
        goals = {name: count + num_steps for name, count in self._counts.items()}
        steps = self._step_until(goals)
        if self._counts != goals:
            surplus = max(self._counts[name] - goal for name, goal in goals.items())
            raise RuntimeError(f"batch fell apart: a request is {surplus} tokens ahead")
        return steps

    def _step_until(self, goals: dict[str, int]) -> int:
        steps = 0
        while any(self._counts[name] < goal for name, goal in goals.items()):
            if not self._engine.has_unfinished():
                raise RuntimeError(f"batch ended early, with {min(self._counts.values())} tokens")
            for name, num_tokens in self._engine.step().items():
                self._counts[name] += num_tokens
            steps += 1
        return steps

    def end(self) -> None:
        self._engine.abort(list(self._counts))
        while self._engine.has_unfinished():
            self._engine.step()


def measure_prefill(engine: MeasuredEngine, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Seconds from the first request added to the last one's first token."""
    gc.collect()
    engine.take_timings()
    start = time.perf_counter()
    batch = Batch(engine, prompts, 1)
    steps = batch.prefill()
    seconds = time.perf_counter() - start
    timings = engine.take_timings()
    batch.end()
    num_tokens = sum(map(len, prompts))
    return {"seconds": seconds, "tokens": num_tokens, "steps": steps, "timings": timings}


class DecodeMeasurement:
    """Decode of one batch in windows, between which the process may wait as long as it likes."""

    def __init__(self, engine: MeasuredEngine) -> None:
        self._engine = engine
        self._batch: Batch | None = None

    def begin(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, num_steps: int
    ) -> dict[str, Any]:
        """Prefills, then decodes one window that does not count."""
        assert self._batch is None
        start = time.perf_counter()
        self._batch = Batch(self._engine, prompts, max_tokens)
        self._batch.prefill()
        seconds = time.perf_counter() - start
        self._batch.decode(num_steps)
        return {"seconds": seconds}

    def window(self, num_steps: int) -> dict[str, Any]:
        """Times `num_steps` tokens of every request; `context` is its mean before and after."""
        assert self._batch is not None
        context = self._batch.mean_context
        gc.collect()
        self._engine.take_timings()
        start = time.perf_counter()
        steps = self._batch.decode(num_steps)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "tokens": num_steps * self._batch.size,
            "steps": steps,
            "timings": self._engine.take_timings(),
            "context": [context, self._batch.mean_context],
        }

    def end(self) -> dict[str, Any]:
        assert self._batch is not None
        self._batch.end()
        self._batch = None
        return {}


def serve(load: Callable[[dict[str, Any]], MeasuredEngine]) -> None:
    """Answer commands until stdin ends; the first one holds the settings for `load`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = load(json.loads(sys.stdin.readline()))
    decode = DecodeMeasurement(engine)
    _answer(answers, engine.describe())
    for line in sys.stdin:
        _answer(answers, _obey(engine, decode, json.loads(line)))
    # Engines leave threads behind that make an orderly exit slow or noisy.
    os._exit(0)


def _obey(
    engine: MeasuredEngine, decode: DecodeMeasurement, command: dict[str, Any]
) -> dict[str, Any]:
    kind = command["kind"]
    if kind == "begin":
        return decode.begin(command["prompts"], command["max_tokens"], command["num_steps"])
    if kind == "window":
        return decode.window(command["num_steps"])
    if kind == "end":
        return decode.end()
    assert kind == "prefill"
    return measure_prefill(engine, command["prompts"])


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
