"""What a step in the making would take: the step-time model, kept up to date row by row."""

from collections.abc import Collection

from scheduler.step_time import StepCosts, StepShape


class StepLoad:
    """Adding rows and asking what they cost takes constant time, whatever the step holds."""

    def __init__(self, costs: StepCosts, coldness: float = 0.0) -> None:
        self._costs = costs
        self._coldness = coldness
        self._num_decode_rows = 0
        self._decode_context_tokens = 0
        self._num_prefill_tokens = 0
        self._prefill_pairs = 0
        self._prefill_context_tokens = 0
        self._num_sampled_rows = 0
        self._num_prefill_chunks = 0
        self._linear_s = costs.overhead_s + costs.cold_step_s * coldness
        """All but the dense layers."""
        self._urgent: StepShape | None = None
        self._urgent_s: float | None = None

    @property
    def num_rows(self) -> int:
        return self._num_decode_rows + self._num_prefill_tokens

    @property
    def seconds(self) -> float:
        """Of the step as it is; its overhead, while it is empty."""
        return self._linear_s + self._dense_s(self.num_rows)

    @property
    def shape(self) -> StepShape:
        return StepShape(
            self._num_decode_rows,
            self._decode_context_tokens,
            self._num_prefill_tokens,
            self._prefill_pairs,
            self._prefill_context_tokens,
            0.0,
            self._num_sampled_rows,
            self._num_prefill_chunks,
            self._coldness,
        )

    @property
    def urgent_shape(self) -> StepShape:
        """Of its latency-sensitive rows."""
        return self.shape if self._urgent is None else self._urgent

    @property
    def urgent_s(self) -> float:
        """What these take by themselves."""
        return self.seconds if self._urgent_s is None else self._urgent_s

    def end_urgent(self) -> None:
        """All latency-sensitive rows have joined; what follows is best-effort."""
        self._urgent, self._urgent_s = self.shape, self.seconds

    def seconds_with(self, start: int, num_tokens: int, *, samples: bool = True) -> float:
        """Of the step with so many tokens more, the first of them at position `start`."""
        more_s = self._linear_cost_s(start, num_tokens, samples)
        return self._linear_s + more_s + self._dense_s(self.num_rows + num_tokens)

    def lane_rows_s(self, most_rows: int) -> tuple[float, ...]:
        """What 0, 1, 2 ... `most_rows` lane rows at every layer add to the step."""
        dense_s = self._costs.dense_growth_s(self.num_rows, most_rows)
        # A step without rows has no dense layers.
        bare_s = dense_s[0] if self.num_rows else 0.0
        lane_row_s = self._costs.lane_row_s
        return (
            0.0,
            *(
                number * lane_row_s + each_s - bare_s
                for number, each_s in enumerate(dense_s)
                if number
            ),
        )

    def most_tokens(self, start: int, num_wanted: int, budget_s: float) -> int:
        """Of the next `num_wanted` tokens of a request, as many as the step can take on."""
        if self.seconds_with(start, num_wanted) <= budget_s:
            return num_wanted
        fitting, too_many = 0, num_wanted
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            if self.seconds_with(start, middle) <= budget_s:
                fitting = middle
            else:
                too_many = middle
        return fitting

    def add(self, start: int, num_tokens: int, *, samples: bool) -> None:
        """The step takes on these tokens; one alone is a decode row, more are a chunk."""
        self._linear_s += self._linear_cost_s(start, num_tokens, samples)
        if num_tokens == 1:
            self._num_decode_rows += 1
            self._decode_context_tokens += start + 1
        else:
            self._num_prefill_tokens += num_tokens
            self._prefill_pairs += count_pairs(start, num_tokens)
            self._prefill_context_tokens += start + num_tokens
            self._num_prefill_chunks += 1
        self._num_sampled_rows += samples

    def seconds_with_decodes(self, starts: Collection[int]) -> float:
        """Of the step with a sampled row more at each of these positions."""
        more_s = self._decodes_s(len(starts), sum(starts))
        return self._linear_s + more_s + self._dense_s(self.num_rows + len(starts))

    def add_decodes(self, starts: Collection[int], sign: int = 1) -> None:
        """The step takes on a sampled row at each of these positions; with a sign of -1 those that
        were added before do not join after all."""
        num_rows, sum_starts = len(starts), sum(starts)
        self._linear_s += sign * self._decodes_s(num_rows, sum_starts)
        self._num_decode_rows += sign * num_rows
        self._decode_context_tokens += sign * (sum_starts + num_rows)
        self._num_sampled_rows += sign * num_rows

    def _decodes_s(self, num_rows: int, sum_starts: int) -> float:
        costs = self._costs
        row_s = costs.decode_row_s + costs.decode_context_token_s + costs.sampled_row_s
        return num_rows * row_s + sum_starts * costs.decode_context_token_s

    def _linear_cost_s(self, start: int, num_tokens: int, samples: bool) -> float:
        costs = self._costs
        sampled_s = costs.sampled_row_s if samples else 0.0
        if num_tokens == 1:
            return costs.decode_row_s + costs.decode_context_token_s * (start + 1) + sampled_s
        return (
            costs.prefill_token_s * num_tokens
            + costs.prefill_pair_s * count_pairs(start, num_tokens)
            + costs.prefill_context_token_s * (start + num_tokens)
            + (0.0 if self._num_prefill_tokens else costs.prefill_step_s)
            + costs.prefill_chunk_s
            + sampled_s
        )

    def _dense_s(self, num_rows: float) -> float:
        return self._costs.dense_s(num_rows) if num_rows else 0.0


def count_pairs(start: int, num_tokens: int) -> int:
    """Pairs under the causal mask: what tokens from position `start` on attend to, themselves
    included."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2
