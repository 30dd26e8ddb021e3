"""What benchmarks/engine.py measures: the cases, their prompts, and the room that they need."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAX_NUM_SEQS = 64
# Special tokens come first in the vocabulary; prompts hold none.
_FIRST_PLAIN_TOKEN = 256
# KV blocks of either engine hold at most this many tokens, so a request wastes less than that.
_LARGEST_BLOCK_TOKENS = 128
# What an engine's process takes beside KV and weights: libraries, compiled code, activations.
_PROCESS_BYTES = 1536 << 20
# Weights lie in memory as read and once more in the form that the products want.
_WEIGHT_COPIES = 2


class DoesNotFit(Exception):
    """The cases asked for do not fit the model, the KV limit, the step or the memory."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing measured: `batch` prompts of `length` tokens, prefilled or decoded from there."""

    kind: Literal["decode", "prefill"]
    batch: int
    length: int

    def __str__(self) -> str:
        place = "context" if self.kind == "decode" else "prompts of"
        return f"{self.kind}, batch {self.batch}, {place} {self.length}"

    def prompts(self, vocab_size: int, seed: str) -> list[list[int]]:
        """The same for the same arguments; other seeds give other tokens."""
        numbers = random.Random(f"{self}/{vocab_size}/{seed}")
        tokens = range(_FIRST_PLAIN_TOKEN, vocab_size)
        return [numbers.choices(tokens, k=self.length) for _ in range(self.batch)]


@dataclass(frozen=True, slots=True)
class Procedure:
    """How a case is measured, the same for all of them."""

    rounds: int
    window_steps: int
    """Decode steps of one window; a round is one window of each engine."""
    step_tokens: int
    """Most tokens that an engine computes in one step, MAX_NUM_SEQS or more."""
    settle_s: float

    def max_new_tokens(self, case: Case) -> int:
        """Tokens after which no request of the case may have ended yet."""
        if case.kind == "prefill":
            return 1
        # Early requests decode while late ones prefill; those leave at least this to prompts.
        prompt_tokens = self.step_tokens - case.batch + 1
        prefill_steps = case.batch * -(-case.length // prompt_tokens)
        return prefill_steps + (self.rounds + 1) * self.window_steps + 16

    def request_tokens(self, case: Case) -> int:
        return case.length + self.max_new_tokens(case)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a checkpoint takes."""

    weight_bytes: int
    kv_bytes_per_token: int
    max_positions: int


def kv_bytes_for(case: Case, procedure: Procedure, size: ModelSize) -> int:
    """KV that holds all requests of the case to their end, in blocks of either engine."""
    # One block more: vLLM keeps the first for itself.
    num_blocks = 1 + case.batch * -(-procedure.request_tokens(case) // _LARGEST_BLOCK_TOKENS)
    return num_blocks * _LARGEST_BLOCK_TOKENS * size.kv_bytes_per_token


def plan_kv_bytes(
    cases: Sequence[Case], procedure: Procedure, size: ModelSize, limit_bytes: int | None
) -> int:
    """`limit_bytes`, or what the largest case needs where that is None.

    Raises:
        DoesNotFit: a case needs more KV than the limit, more positions than the model has, or
            more requests in a step than the engines run.
    """
    for case in cases:
        if case.batch > MAX_NUM_SEQS:
            raise DoesNotFit(f"{case}: the engines run at most {MAX_NUM_SEQS} requests at once")
        tokens = procedure.request_tokens(case)
        if tokens > size.max_positions:
            raise DoesNotFit(
                f"{case}: needs {tokens} positions, prompt and output together; "
                f"the model has {size.max_positions}"
            )
        needed = kv_bytes_for(case, procedure, size)
        if limit_bytes is not None and needed > limit_bytes:
            raise DoesNotFit(
                f"{case}: needs --kv-mib {-(-needed >> 20)} or more, not {limit_bytes >> 20}"
            )
    if limit_bytes is not None:
        return limit_bytes
    return max(kv_bytes_for(case, procedure, size) for case in cases)


def check_memory(size: ModelSize, kv_bytes: int, num_engines: int, available_bytes: int) -> None:
    """Raises DoesNotFit where that many engines, loaded together, need more than is available."""
    engine_bytes = kv_bytes + _WEIGHT_COPIES * size.weight_bytes + _PROCESS_BYTES
    if num_engines * engine_bytes > available_bytes:
        raise DoesNotFit(
            f"{num_engines} engine(s) of {engine_bytes / 2**30:.1f} GiB each, "
            f"{kv_bytes / 2**30:.1f} GiB of it KV, need more than the "
            f"{available_bytes / 2**30:.1f} GiB of memory that are available; "
            f"take smaller cases (--context, --batch, --prefill) or one engine (--no-peer)"
        )
