"""Makes synthetic traces by a recipe: the same recipe and seed, the same trace."""

import math

import numpy as np

from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.synth.arrivals import arrival_times_s
from omniserve.bench.trace.synth.lengths import Tokens
from omniserve.bench.trace.synth.recipes import Recipe, Stragglers, Tenants
from omniserve.bench.trace.synth.sessions import Turn, thread_sessions
from omniserve.bench.trace.trace import Trace, TraceRequest

MAX_REQUESTS = 10_000_000

_NO_TURN = Turn(0, ())
"""Of a recipe without sessions; real ones count from 1."""


def synthesise(
    recipe: Recipe,
    seed: int = 0,
    *,
    rate_per_s: float | None = None,
    duration_s: float | None = None,
    num_requests: int | None = None,
) -> Trace:
    """A trace of the recipe's rate and length, or of those that are given; raises TraceError where
    they are not positive, or contradict each other.

    Two of the three make the third. A higher rate has more requests in the same minutes, with the
    same variation of the rate and of the gaps.
    """
    num_requests, duration_s = _size(recipe, rate_per_s, duration_s, num_requests)
    # A generator for each part: another share of failures leaves the arrivals as they are.
    streams = [np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(6)]
    arriving, lengths, straggling, failing, going_on, renting = streams

    times_s = arrival_times_s(recipe.envelope, recipe.gap_cv, num_requests, duration_s, arriving)
    prompt_tokens, output_tokens = recipe.lengths.draw(num_requests, lengths)
    if recipe.stragglers is not None:
        output_tokens = _with_stragglers(output_tokens, recipe.stragglers, straggling)
    is_failed = failing.random(num_requests) < recipe.failed_share
    output_tokens = np.where(is_failed, 0, output_tokens)
    columns = (times_s.tolist(), prompt_tokens.tolist(), output_tokens.tolist())
    turns = [] if recipe.sessions is None else thread_sessions(recipe.sessions, *columns, going_on)
    tenants = _tenants(recipe.tenants, num_requests, renting)
    requests = []
    for place, (at_s, prompt, output) in enumerate(zip(*columns, strict=True)):
        turn = turns[place] if turns else _NO_TURN
        tenant = tenants[(turn.session or place) % num_requests] if tenants else ""
        requests.append(
            TraceRequest(
                at_s,
                prompt,
                output,
                session=str(turn.session or ""),
                prefix_hashes=turn.prefix_hashes,
                tier=recipe.tier,
                tenant=tenant,
                failed=output == 0,
            )
        )
    return Trace(recipe.name, tuple(requests))


def _size(
    recipe: Recipe, rate_per_s: float | None, duration_s: float | None, num_requests: int | None
) -> tuple[int, float]:
    """Requests and seconds."""
    for field, value in (
        ("rate", rate_per_s),
        ("duration", duration_s),
        ("number of requests", num_requests),
    ):
        if value is not None and not 0 < value < math.inf:
            raise TraceError(f"{field}: {value:g} is not allowed; allowed: a number above 0")
    if num_requests is not None and duration_s is not None:
        if rate_per_s is not None:
            raise TraceError("rate, duration and number of requests: give two of the three")
        return num_requests, duration_s
    rate_per_s = recipe.rate_per_s if rate_per_s is None else rate_per_s
    if num_requests is None:
        duration_s = recipe.duration_s if duration_s is None else duration_s
        num_requests = max(1, round(rate_per_s * duration_s))
    if num_requests > MAX_REQUESTS:
        raise TraceError(
            f"number of requests: {num_requests} is not allowed; allowed: up to {MAX_REQUESTS}"
        )
    return num_requests, duration_s or num_requests / rate_per_s


def _with_stragglers(
    output_tokens: Tokens, stragglers: Stragglers, rng: np.random.Generator
) -> Tokens:
    is_straggler = rng.random(len(output_tokens)) < stragglers.share
    tails = stragglers.min_tokens * (1 + rng.pareto(stragglers.alpha, len(output_tokens)))
    long_tokens = np.minimum(tails, stragglers.max_tokens).astype(np.int64)
    return np.where(is_straggler, long_tokens, output_tokens)


def _tenants(tenants: Tenants | None, num_requests: int, rng: np.random.Generator) -> list[str]:
    """One name for each session, or for each request where there are no sessions."""
    if tenants is None:
        return []
    weights = np.arange(1, tenants.count + 1, dtype=np.float64) ** -tenants.exponent
    drawn = rng.choice(tenants.count, size=num_requests, p=weights / weights.sum())
    return [f"tenant-{tenant + 1}" for tenant in drawn.tolist()]
