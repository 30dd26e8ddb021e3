"""What the client saw of each request, and what it means for a tier. Times are since the start."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from omniserve.percentiles import percentile

Outcome = Literal["running", "done", "failed", "refused", "cut_off"]


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier as the daemon describes it; objectives only where it has them."""

    name: str
    service_class: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    percentile: float | None = None


@dataclass(slots=True)
class RequestTrace:
    """One request: when it was sent, when tokens came, how it ended."""

    tier: str
    sent_s: float
    arrivals: list[tuple[float, float]] = field(default_factory=list)
    """When something came, and how many tokens it was."""
    outcome: Outcome = "running"
    ended_s: float | None = None
    error: str = ""

    def add(self, at_s: float, num_tokens: float) -> None:
        self.arrivals.append((at_s, num_tokens))

    def end(self, at_s: float, outcome: Outcome, error: str = "") -> None:
        self.ended_s, self.outcome, self.error = at_s, outcome, error

    def correct_total(self, num_tokens: int) -> None:
        """Spreads the true number over the arrivals, where each was counted as one token."""
        if self.arrivals:
            share = num_tokens / len(self.arrivals)
            self.arrivals = [(at_s, share) for at_s, _ in self.arrivals]

    @property
    def num_tokens(self) -> float:
        return sum(num_tokens for _, num_tokens in self.arrivals)

    @property
    def is_waiting(self) -> bool:
        return self.outcome == "running" and not self.arrivals

    @property
    def ttft_ms(self) -> float | None:
        """From just before sending to the first token."""
        return 1000 * (self.arrivals[0][0] - self.sent_s) if self.arrivals else None

    @property
    def tpot_ms(self) -> float | None:
        """Mean time between tokens after the first; None unless the request was finished."""
        num_tokens = round(self.num_tokens)
        if self.outcome != "done" or num_tokens < 2:
            return None
        return 1000 * (self.arrivals[-1][0] - self.arrivals[0][0]) / (num_tokens - 1)


@dataclass(frozen=True, slots=True)
class TierSummary:
    """One row of the result; None where there is nothing to measure."""

    tier: Tier
    num_sent: int
    num_done: int
    num_failed: int
    num_refused: int
    """Turned away by admission; where the tier has objectives they have missed them."""
    num_cut_off: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    share_within: float | None
    """Part of the requests that met both objectives, 0 to 1; None for a tier without them."""
    tokens_per_s: float

    @property
    def is_goal_met(self) -> bool | None:
        """None where the tier has no objectives, or there was nothing to compare with them."""
        if self.share_within is None or self.tier.percentile is None:
            return None
        return 100 * self.share_within >= self.tier.percentile


def share_within(tier: Tier, traces: Sequence[RequestTrace]) -> float | None:
    """The share of all requests that ended within both objectives; any other missed them."""
    if tier.ttft_ms is None or tier.tpot_ms is None or not traces:
        return None
    return sum(_is_within(tier.ttft_ms, tier.tpot_ms, trace) for trace in traces) / len(traces)


def _is_within(ttft_ms: float, tpot_ms: float, trace: RequestTrace) -> bool:
    if trace.outcome != "done" or trace.ttft_ms is None:
        return False
    # A single token has no time between tokens.
    return trace.ttft_ms <= ttft_ms and (trace.tpot_ms or 0.0) <= tpot_ms


def summarise(tier: Tier, traces: Iterable[RequestTrace], window_s: float) -> TierSummary:
    """Sums up the requests of one tier; tokens per second are those of the first `window_s`."""
    own = [trace for trace in traces if trace.tier == tier.name]
    ttfts, tpots = ttfts_ms(own), tpots_ms(own)
    num_tokens = sum(count for trace in own for at_s, count in trace.arrivals if at_s < window_s)
    outcomes = [trace.outcome for trace in own]
    return TierSummary(
        tier=tier,
        num_sent=len(own),
        num_done=outcomes.count("done"),
        num_failed=outcomes.count("failed"),
        num_refused=outcomes.count("refused"),
        num_cut_off=outcomes.count("cut_off"),
        ttft_p50_ms=percentile(ttfts, 50),
        ttft_p99_ms=percentile(ttfts, 99),
        tpot_p50_ms=percentile(tpots, 50),
        tpot_p99_ms=percentile(tpots, 99),
        share_within=share_within(tier, own),
        tokens_per_s=num_tokens / window_s,
    )


def ttfts_ms(traces: Iterable[RequestTrace]) -> list[float]:
    return [trace.ttft_ms for trace in traces if trace.ttft_ms is not None]


def tpots_ms(traces: Iterable[RequestTrace]) -> list[float]:
    return [trace.tpot_ms for trace in traces if trace.tpot_ms is not None]


def tokens_by_second(traces: Iterable[RequestTrace], first_s: int, num_seconds: int) -> list[float]:
    """Tokens that came in each of the seconds from `first_s` on."""
    bins = [0.0] * num_seconds
    for trace in traces:
        # Most requests are over long before the seconds asked for.
        if trace.arrivals and trace.arrivals[-1][0] >= first_s:
            for at_s, num_tokens in trace.arrivals:
                place = math.floor(at_s) - first_s
                if 0 <= place < num_seconds:
                    bins[place] += num_tokens
    return bins


def running_over_time(traces: Iterable[RequestTrace]) -> list[tuple[float, int]]:
    """Steps (time, requests between their first token and their end from then on)."""
    return _count_over_time(
        (trace.arrivals[0][0], trace.ended_s) for trace in traces if trace.arrivals
    )


def waiting_over_time(traces: Iterable[RequestTrace]) -> list[tuple[float, int]]:
    """Steps (time, requests that were sent and have no token yet from then on)."""
    return _count_over_time(
        (trace.sent_s, trace.arrivals[0][0] if trace.arrivals else trace.ended_s)
        for trace in traces
    )


def _count_over_time(
    spans: Iterable[tuple[float, float | None]],
) -> list[tuple[float, int]]:
    """How many of the spans (begin, end; None never ends) cover each time from 0 on."""
    changes = {0.0: 0}
    for begin_s, end_s in spans:
        changes[begin_s] = changes.get(begin_s, 0) + 1
        if end_s is not None:
            changes[end_s] = changes.get(end_s, 0) - 1
    counts, count = [], 0
    for at_s in sorted(changes):
        count += changes[at_s]
        counts.append((at_s, count))
    return counts


def mean_by_bin(
    counts: Sequence[tuple[float, int]], until_s: float, num_bins: int
) -> list[tuple[float, float]]:
    """The mean of a step function over equal parts of 0 to `until_s`, at the middle of each."""
    width_s = until_s / num_bins
    areas = [0.0] * num_bins
    ends = [at_s for at_s, _ in counts[1:]] + [until_s]
    for (begin_s, count), end_s in zip(counts, ends, strict=True):
        at_s, end_s = begin_s, min(end_s, until_s)
        while count and at_s < end_s:
            place = min(num_bins - 1, math.floor(at_s / width_s))
            # The next border; rounding must not leave it where we are.
            next_s = max(min(end_s, (place + 1) * width_s), math.nextafter(at_s, math.inf))
            areas[place] += count * (next_s - at_s)
            at_s = next_s
    return [((place + 0.5) * width_s, area / width_s) for place, area in enumerate(areas)]
