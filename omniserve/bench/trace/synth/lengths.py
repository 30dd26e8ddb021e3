"""Lengths of prompts and outputs, drawn together: in real traces one tells of the other."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from omniserve.bench.trace.samples import sample_lengths

Tokens = npt.NDArray[np.int64]

LEVELS = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0),
)
"""The shares that tables of quantiles are given for."""


class Lengths(Protocol):
    """Draws prompt and output tokens of requests, at least 1 each."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]: ...


@dataclass(frozen=True, slots=True)
class PairLengths:
    """Pairs that were seen, drawn with replacement."""

    pairs: tuple[tuple[int, int], ...]

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        drawn = np.array(self.pairs, dtype=np.int64)[
            rng.integers(len(self.pairs), size=num_requests)
        ]
        return drawn[:, 0], drawn[:, 1]


@dataclass(frozen=True, slots=True)
class SampleLengths:
    """Pairs of a trace that comes with the package."""

    sample: str

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        return PairLengths(tuple(sample_lengths(self.sample))).draw(num_requests, rng)


@dataclass(frozen=True, slots=True)
class QuantileLengths:
    """Tables of quantiles at LEVELS, where no pairs are known but their rank correlation is.

    A Gaussian copula gives the pairs their order: the ranks of two normal variables with the
    correlation 2 sin(π/6 · spearman) correlate as wanted. The ranks are spread evenly over the
    tables, so that the lengths follow them closely.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    spearman: float

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        correlation = 2 * math.sin(math.pi / 6 * self.spearman)
        first, other = rng.standard_normal((2, num_requests))
        second = correlation * first + math.sqrt(1 - correlation**2) * other
        return _from_ranks(first, self.prompt), _from_ranks(second, self.output)


@dataclass(frozen=True, slots=True)
class ZipfLengths:
    """Both lengths by Zipf's law, cut off at a limit, as BurstGPT's generator draws them."""

    exponent: float
    """A length of k tokens has probability k^-exponent, up to a factor."""
    max_tokens: int

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        weights = np.arange(1, self.max_tokens + 1, dtype=np.float64) ** -self.exponent
        shares = np.cumsum(weights) / weights.sum()
        prompt, output = np.searchsorted(shares, rng.random((2, num_requests))) + 1
        return prompt, output


def _from_ranks(values: npt.NDArray[np.float64], table: tuple[int, ...]) -> Tokens:
    ranks = np.argsort(np.argsort(values))
    tokens = np.interp((ranks + 0.5) / len(values), LEVELS, table)
    drawn: Tokens = np.maximum(1, np.round(tokens)).astype(np.int64)
    return drawn
