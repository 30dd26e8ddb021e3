"""How long a step takes: a sum of terms that are each linear in what the step computes.

Attention is linear in causal pairs and in context tokens, dense layers are a staircase over rows:
the latency model of OmniServe (its section 3.3.1), with the host's part and lane rows beside it.
"""

from bisect import bisect_right
from dataclasses import dataclass, fields, replace
from math import inf

_LARGE_ROWS = 128
"""Of a step that leaves nothing in the caches of what small steps use."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What the time of a step depends on."""

    num_decode_rows: int = 0
    decode_context_tokens: int = 0
    """Tokens that the decode rows attend to, summed over the rows."""
    num_prefill_tokens: int = 0
    prefill_pairs: int = 0
    """Tokens that each prefill row attends to, its own among them, summed over the rows."""
    prefill_context_tokens: int = 0
    """Tokens that the last row of each chunk attends to, summed over the chunks."""
    num_lane_rows: float = 0.0
    """Rows from the host that join, the mean over the layers."""
    num_sampled_rows: int = 0
    """Rows whose residual goes through the output head."""
    num_prefill_chunks: int = 0
    coldness: float = 0.0
    """How far the steps before it were large ones, which fill the caches: 0 to 1."""

    def with_lane_rows(self, num_lane_rows: float) -> "StepShape":
        return replace(self, num_lane_rows=num_lane_rows)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Coefficients, all in seconds."""

    overhead_s: float
    """Of every step, whatever it computes: planning, laying out, sampling, completing."""
    dense_ladder: tuple[tuple[int, float], ...]
    """(rows, seconds) of all that does not attend, ascending; between two entries, and behind the
    last two, the line through them; below the first, its seconds."""
    decode_row_s: float = 0.0
    """Attention and bookkeeping of a decode row, besides the tokens it attends to."""
    decode_context_token_s: float = 0.0
    prefill_token_s: float = 0.0
    """Bookkeeping of a prefill row, besides its share in the ladder."""
    prefill_pair_s: float = 0.0
    prefill_context_token_s: float = 0.0
    """Of laying out the keys and values of a chunk's context, however few its rows are."""
    prefill_step_s: float = 0.0
    """Of a step with a prefill chunk, besides what its rows take."""
    prefill_chunk_s: float = 0.0
    """Of each prefill chunk, besides its rows: it attends by itself."""
    lane_row_s: float = 0.0
    """Moving a lane row in and out at every layer, besides its share in the ladder."""
    sampled_row_s: float = 0.0
    cold_step_s: float = 0.0
    """Of a step that finds the caches full of what large steps left."""

    def __post_init__(self) -> None:
        """Raises ValueError where rows or seconds of the ladder descend, or a cost is negative."""
        rows = [entry[0] for entry in self.dense_ladder]
        if not rows or rows != sorted(set(rows)):
            raise ValueError(f"dense_ladder: {self.dense_ladder!r}, its rows must ascend")
        rungs = [entry[1] for entry in self.dense_ladder]
        # Searches for what fits into a time rest on more work taking no less of it.
        if rungs != sorted(rungs):
            raise ValueError(f"dense_ladder: {self.dense_ladder!r}, its seconds must not descend")
        costs = [(name, getattr(self, name)) for name in COST_NAMES]
        for name, seconds in (*costs, *(("dense_ladder", rung) for rung in rungs)):
            if not 0.0 <= seconds < inf:
                raise ValueError(f"{name}: {seconds!r} is not allowed; allowed: 0 or more seconds")

    def dense_s(self, num_rows: float) -> float:
        """Of all that does not attend."""
        ladder = self.dense_ladder
        index = bisect_right(ladder, (num_rows, inf))
        if index == 0 or len(ladder) == 1:
            return ladder[0][1]
        index = min(index, len(ladder) - 1)
        (left_rows, left_s), (right_rows, right_s) = ladder[index - 1], ladder[index]
        return left_s + (right_s - left_s) * (num_rows - left_rows) / (right_rows - left_rows)

    def dense_growth_s(self, num_rows: int, most_more: int) -> list[float]:
        """Of the dense layers of 0, 1, 2 ... `most_more` rows more than `num_rows`, without asking
        for each."""
        seconds: list[float] = []
        first, last = num_rows, num_rows + most_more
        ends = [rows for rows, _ in self.dense_ladder if first < rows <= last]
        for end in (*ends, last + 1):
            from_s = self.dense_s(first)
            # Within a rung it is a line.
            row_s = (self.dense_s(end) - from_s) / (end - first)
            seconds += [from_s + row_s * number for number in range(end - first)]
            first = end
        return seconds

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        num_rows = shape.num_decode_rows + shape.num_prefill_tokens + shape.num_lane_rows
        return (
            self.overhead_s
            + (self.dense_s(num_rows) if num_rows else 0.0)
            + self.decode_row_s * shape.num_decode_rows
            + self.decode_context_token_s * shape.decode_context_tokens
            + self.prefill_token_s * shape.num_prefill_tokens
            + self.prefill_pair_s * shape.prefill_pairs
            + self.prefill_context_token_s * shape.prefill_context_tokens
            + (self.prefill_step_s if shape.num_prefill_tokens else 0.0)
            + self.prefill_chunk_s * shape.num_prefill_chunks
            + self.lane_row_s * shape.num_lane_rows
            + self.sampled_row_s * shape.num_sampled_rows
            + self.cold_step_s * shape.coldness
        )

    def times(self, factor: float) -> "StepCosts":
        """Of a device that takes so much longer for everything."""
        return StepCosts(
            dense_ladder=tuple((rows, factor * rung) for rows, rung in self.dense_ladder),
            **{name: factor * getattr(self, name) for name in COST_NAMES},
        )


COST_NAMES = tuple(field.name for field in fields(StepCosts) if field.name != "dense_ladder")


@dataclass(frozen=True, slots=True)
class LinearStepTime:
    """A device's step times, with and without the cores that host attention takes."""

    alone: StepCosts
    beside_host: StepCosts | None = None
    """While requests are on the host; None: as alone, for a device whose cores are its own."""

    def costs(self, host_active: bool) -> StepCosts:
        return self.beside_host if host_active and self.beside_host is not None else self.alone


def coldness_after(coldness: float, num_rows: float) -> float:
    """What a step of so many rows, begun at `coldness`, leaves to the next one."""
    return 0.5 * (coldness + min(1.0, num_rows / _LARGE_ROWS))
