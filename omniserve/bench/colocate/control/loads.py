"""How often latency-sensitive requests come, as multiples of what the server can take of them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omniserve.bench.trace.trace import Trace, TraceRequest

LoadName = Literal["steady", "bursty", "overload"]
Base = Literal["capacity", "throughput"]
"""LS requests per second that LS alone can take within its objectives, or at all."""
SLICE_S = 5.0
"""For so long the rate stays as it is."""


@dataclass(frozen=True, slots=True)
class Load:
    """A rate drawn anew for every slice, evenly between two multiples of a base."""

    name: LoadName
    low: float
    high: float
    base: Base = "capacity"
    build_up_s: float = 0.0
    """More warm-up: what is too much has to queue before it shows."""

    @property
    def title(self) -> str:
        if self.low == self.high:
            return f"{self.name}: {self.low:g} x {self.base}"
        return (
            f"{self.name}: {self.low:g} to {self.high:g} x {self.base}, drawn every {SLICE_S:g} s"
        )


LOADS: dict[LoadName, Load] = {
    # The mean of the bursty load, so that the two differ in nothing else.
    "steady": Load("steady", 0.7, 0.7),
    "bursty": Load("bursty", 0.2, 1.2),
    "overload": Load("overload", 1.3, 1.3, "throughput", build_up_s=14.0),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a window; seconds since its measured part began."""

    start_s: float
    end_s: float
    rate: float
    """Requests per second."""


def slices_of(
    load: Load, base_rate: float, warm_up_s: float, duration_s: float, seed: str
) -> list[Slice]:
    """Of a whole window, its warm-up first; the measured part begins with a slice."""
    rng = random.Random(f"rates {load.name} {seed}")
    num_before, num_measured = (math.ceil(each_s / SLICE_S) for each_s in (warm_up_s, duration_s))
    parts = [*_draws(rng, num_before), *_draws(rng, num_measured)]
    return [
        Slice(
            max(-warm_up_s, index * SLICE_S),
            min(duration_s, (index + 1) * SLICE_S),
            base_rate * (load.low + part * (load.high - load.low)),
        )
        for index, part in enumerate(parts, start=-num_before)
    ]


def _draws(rng: random.Random, num: int) -> list[float]:
    """Each evenly from 0 to 1, and no two from the same `num`-th of that: a window has few slices,
    and drawn apart from each other they would be busy in one and idle in the next."""
    draws = [(index + rng.random()) / num for index in range(num)]
    rng.shuffle(draws)
    return draws


def requests_of(slices: Sequence[Slice], lengths: Trace, seed: str) -> Trace:
    """Requests at random times of each slice, as many as its rate says; second 0 is the beginning
    of the first one. Their lengths are drawn from `lengths`."""
    rng = random.Random(f"requests {seed}")
    begin_s = slices[0].start_s
    requests = []
    for each in slices:
        width_s = each.end_s - each.start_s
        for at_s in sorted(rng.random() * width_s for _ in range(round(each.rate * width_s))):
            like = rng.choice(lengths.requests)
            requests.append(
                TraceRequest(
                    each.start_s - begin_s + at_s, like.prompt_tokens, max(1, like.output_tokens)
                )
            )
    return Trace(lengths.name, tuple(requests))
