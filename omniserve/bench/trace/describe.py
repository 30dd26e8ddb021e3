"""What there is to say of a trace, in figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from omniserve.bench.trace import statistics
from omniserve.bench.trace.trace import Trace
from omniserve.bench.trace.transform import spread_ticks, tick_s

LENGTH_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FANO_WINDOWS_S = (1.0, 10.0, 60.0)
_MAX_NAMES = 12
_NUM_PROMPT_GROUPS = 5

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthFigures:
    """Tokens of prompts or of outputs."""

    mean: float
    smallest: int
    quantiles: dict[str, float]
    """By name, such as p95."""
    largest: int


@dataclass(frozen=True, slots=True)
class ArrivalFigures:
    """When requests came; None where the trace is too short to say."""

    rate_per_s: float | None
    gap_cv: float | None
    """Of the whole trace: standard deviation over mean of the gaps; 1 for Poisson arrivals."""
    minute_gap_cv: dict[str, float]
    """p10, p50 and p90 of the same within single minutes; empty where none has enough gaps."""
    fano: dict[str, float | None]
    """Variance over mean of the arrivals in windows of 1 s, 10 s and 60 s; 1 for Poisson."""
    idle_minute_share: float | None
    peak_over_mean_minute: float | None
    minute_autocorrelation: float | None
    """Of the arrivals in successive minutes."""


@dataclass(frozen=True, slots=True)
class PrefixFigures:
    """What a cache of prompt prefixes could save; None of all where the trace has no hashes."""

    reused_share: float
    """Of the blocks, those that an earlier request has had."""
    once_used_share: float
    """Of the different blocks, those that one request has alone."""


@dataclass(frozen=True, slots=True)
class TraceDescription:
    """Figures of one trace; those of lengths are of requests that did not fail."""

    name: str
    num_requests: int
    num_failed: int
    duration_s: float
    tick_s: float | None
    """Times are told in steps of so many seconds; for the figures they were spread over them."""
    arrivals: ArrivalFigures
    prompt: LengthFigures
    output: LengthFigures
    spearman: float | None
    """Rank correlation of prompt and output tokens."""
    output_by_prompt: tuple[tuple[float, float], ...]
    """Five equal groups of requests by prompt: the longest prompt, and the median output."""
    prompt_over_output: float
    """Prompt tokens for each output token."""
    prefixes: PrefixFigures | None
    num_sessions: int
    turns_per_session: float | None
    tiers: dict[str, int]
    """Requests by name; the largest ones where there are many."""
    tenants: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(trace: Trace) -> TraceDescription:
    """The figures of a trace that has requests."""
    assert trace.requests, "a trace that is read has requests"
    succeeded = [request for request in trace if not request.failed] or list(trace)
    prompt = np.array([request.prompt_tokens for request in succeeded], dtype=np.int64)
    output = np.array([request.output_tokens for request in succeeded], dtype=np.int64)
    sessions = Counter(request.session for request in trace if request.session)
    return TraceDescription(
        name=trace.name,
        num_requests=len(trace),
        num_failed=sum(request.failed for request in trace),
        duration_s=trace.duration_s,
        tick_s=tick_s(trace),
        arrivals=_arrivals(np.array([request.arrival_s for request in spread_ticks(trace)])),
        prompt=_lengths(prompt),
        output=_lengths(output),
        spearman=statistics.spearman(prompt, output),
        output_by_prompt=_output_by_prompt(prompt, output),
        prompt_over_output=float(prompt.sum() / max(1, output.sum())),
        prefixes=_prefixes([request.prefix_hashes for request in trace]),
        num_sessions=len(sessions),
        turns_per_session=fmean(sessions.values()) if sessions else None,
        tiers=_largest(Counter(request.tier for request in trace if request.tier)),
        tenants=_largest(Counter(request.tenant for request in trace if request.tenant)),
    )


def _arrivals(times_s: statistics.Numbers) -> ArrivalFigures:
    minutes = statistics.counts(times_s, 60.0)
    cvs = statistics.window_gap_cvs(times_s)
    has_minutes = len(minutes) > 0 and minutes.any()
    last_s = float(times_s[-1])
    return ArrivalFigures(
        rate_per_s=len(times_s) / last_s if last_s else None,
        gap_cv=statistics.gap_cv(times_s),
        minute_gap_cv=_named_quantiles(cvs, (0.1, 0.5, 0.9)) if cvs else {},
        fano={f"{each:g} s": statistics.fano(times_s, each) for each in FANO_WINDOWS_S},
        idle_minute_share=float((minutes == 0).mean()) if has_minutes else None,
        peak_over_mean_minute=float(minutes.max() / minutes.mean()) if has_minutes else None,
        minute_autocorrelation=statistics.autocorrelation(minutes, 1),
    )


def _lengths(tokens: Tokens) -> LengthFigures:
    return LengthFigures(
        mean=float(tokens.mean()),
        smallest=int(tokens.min()),
        quantiles=_named_quantiles(tokens, LENGTH_LEVELS),
        largest=int(tokens.max()),
    )


def _output_by_prompt(prompt: Tokens, output: Tokens) -> tuple[tuple[float, float], ...]:
    order = np.argsort(prompt, kind="stable")
    groups = [group for group in np.array_split(order, _NUM_PROMPT_GROUPS) if len(group)]
    return tuple((float(prompt[group[-1]]), float(np.median(output[group]))) for group in groups)


def _prefixes(hashes: Sequence[Sequence[int]]) -> PrefixFigures | None:
    reused = statistics.reused_block_share(hashes)
    once_used = statistics.once_used_block_share(hashes)
    return None if reused is None or once_used is None else PrefixFigures(reused, once_used)


def _named_quantiles(values: Sequence[float] | Tokens, levels: Sequence[float]) -> dict[str, float]:
    found = np.quantile(values, levels).tolist()
    return {f"p{level * 100:g}": value for level, value in zip(levels, found, strict=True)}


def _largest(numbers: Counter[str]) -> dict[str, int]:
    return dict(numbers.most_common(_MAX_NAMES))
