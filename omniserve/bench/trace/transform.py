"""Traces made of traces: cut, sped up, shortened, filtered."""

import math
import random
from dataclasses import replace
from itertools import groupby, pairwise
from statistics import median

from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS, Trace, TraceRequest


def slice_trace(trace: Trace, start_s: float = 0.0, end_s: float = math.inf) -> Trace:
    """Requests that arrive in [start_s, end_s), counted from start_s; raises TraceError where no
    request does."""
    kept = [
        replace(request, arrival_s=request.arrival_s - start_s)
        for request in trace
        if start_s <= request.arrival_s < end_s
    ]
    if not kept:
        raise TraceError(
            f"{trace.name}: nothing arrives from {start_s:g} s to {end_s:g} s; "
            f"the last arrival is at {trace.duration_s:g} s"
        )
    return Trace(trace.name, tuple(kept))


def scale(
    trace: Trace,
    *,
    rate: float = 1.0,
    lengths: float = 1.0,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> Trace:
    """`rate` times as many requests a second, by shorter time: none is left out or added, so that
    the burstiness stays; `lengths` multiplies token counts, and the two limits clip them after it.

    Prefixes that were shared stay shared in the same proportion. Raises TraceError where a factor
    or a limit is not positive.
    """
    for field, value in (("rate", rate), ("lengths", lengths)):
        if not 0 < value < math.inf:
            raise TraceError(f"{field}: {value:g} is not allowed; allowed: a number above 0")
    for field, limit in (
        ("max_prompt_tokens", max_prompt_tokens),
        ("max_output_tokens", max_output_tokens),
    ):
        if limit is not None and limit < 1:
            raise TraceError(f"{field}: {limit} is not allowed; allowed: at least 1")
    scaled = (_scaled_request(request, rate, lengths) for request in trace)
    return Trace(
        trace.name,
        tuple(_clipped(each, max_prompt_tokens, max_output_tokens) for each in scaled),
    )


def without_failed(trace: Trace) -> Trace:
    """Without the requests that failed when they were recorded; raises TraceError where none is
    left."""
    kept = tuple(request for request in trace if not request.failed)
    if not kept:
        raise TraceError(f"{trace.name}: every request of it failed")
    return Trace(trace.name, kept)


def only(trace: Trace, *, tier: str | None = None, tenant: str | None = None) -> Trace:
    """The requests of one tier, of one tenant, or both; times stay. Raises TraceError where none
    is left."""
    kept = tuple(
        request
        for request in trace
        if tier in (None, request.tier) and tenant in (None, request.tenant)
    )
    if not kept:
        asked = " and ".join(
            f"{field} {value!r}" for field, value in (("tier", tier), ("tenant", tenant)) if value
        )
        raise TraceError(f"{trace.name}: no request has {asked}")
    return Trace(trace.name, kept)


def with_tier(trace: Trace, tier: str) -> Trace:
    """All requests ask for one tier."""
    return Trace(trace.name, tuple(replace(request, tier=tier) for request in trace))


def tick_s(trace: Trace) -> float | None:
    """The step in which a trace tells its times, where it is so coarse that most requests share
    theirs with another one; None where it is finer."""
    times_s = [request.arrival_s for request in trace]
    distinct = sorted(set(times_s))
    if len(distinct) < 3 or 2 * len(distinct) > len(times_s):
        return None
    gaps_s = sorted(later - earlier for earlier, later in pairwise(distinct))
    step_s = median(gaps_s)
    # Volleys may share a microsecond too; but then there are other gaps far below the median one.
    return step_s if gaps_s[len(gaps_s) // 20] > step_s / 2 else None


def spread_ticks(trace: Trace, seed: int = 0) -> Trace:
    """Where times are coarse, as in Mooncake's traces, requests of one tick are spread evenly at
    random over it; else the trace as it is.

    Replayed as they were told, they would come in volleys that never were.
    """
    step_s = tick_s(trace)
    if step_s is None:
        return trace
    rng = random.Random(seed)
    spread: list[TraceRequest] = []
    for arrival_s, together in groupby(trace, key=lambda request: request.arrival_s):
        requests = list(together)
        offsets_s = sorted(rng.random() * step_s for _ in requests)
        spread += [
            replace(request, arrival_s=round(arrival_s + offset_s, 6))
            for request, offset_s in zip(requests, offsets_s, strict=True)
        ]
    return Trace.sorted(trace.name, spread)


def _scaled_request(request: TraceRequest, rate: float, lengths: float) -> TraceRequest:
    prompt_tokens, output_tokens = request.prompt_tokens, request.output_tokens
    if lengths != 1:
        prompt_tokens = max(1, round(prompt_tokens * lengths))
        # What failed without a token still does.
        output_tokens = output_tokens and max(1, round(output_tokens * lengths))
    return replace(
        request,
        arrival_s=request.arrival_s / rate,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefix_hashes=_scaled_hashes(request.prefix_hashes, prompt_tokens, lengths),
    )


def _scaled_hashes(hashes: tuple[int, ...], prompt_tokens: int, factor: float) -> tuple[int, ...]:
    """New block j comes from old block j / factor; where several come from one, they are told
    apart by their number among them, so that equal prefixes stay equal and others stay different.
    """
    if not hashes or factor == 1:
        return hashes
    copies = math.ceil(factor)
    scaled = []
    for place in range(math.ceil(prompt_tokens / PREFIX_BLOCK_TOKENS)):
        source = min(int(place / factor), len(hashes) - 1)
        copy = min(place - math.ceil(source * factor), copies - 1)
        scaled.append(hashes[source] * copies + max(0, copy))
    return tuple(scaled)


def _clipped(
    request: TraceRequest, max_prompt_tokens: int | None, max_output_tokens: int | None
) -> TraceRequest:
    prompt_tokens = min(request.prompt_tokens, max_prompt_tokens or request.prompt_tokens)
    output_tokens = min(request.output_tokens, max_output_tokens or request.output_tokens)
    num_blocks = math.ceil(prompt_tokens / PREFIX_BLOCK_TOKENS)
    return replace(
        request,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefix_hashes=request.prefix_hashes[:num_blocks],
    )
