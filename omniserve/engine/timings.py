"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("schedule", "prepare", "layers", "logits", "sample", "detokenise", "complete")


class StepTimings:
    """Seconds spent in each phase since the last reset."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.num_steps = 0

    def reset(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.num_steps = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
