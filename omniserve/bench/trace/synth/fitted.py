"""A recipe that makes more of a trace that one has."""

from statistics import median

import numpy as np

from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.statistics import counts, gap_cv, window_gap_cvs
from omniserve.bench.trace.synth.envelopes import Recorded
from omniserve.bench.trace.synth.lengths import PairLengths
from omniserve.bench.trace.synth.recipes import Recipe
from omniserve.bench.trace.trace import Trace
from omniserve.bench.trace.transform import spread_ticks

_MIN_REQUESTS = 100
_WINDOW_S = 60.0
_MIN_WINDOWS = 4
# Gaps of exactly equal length would have a variation of 0, which no Gamma distribution has.
_MIN_CV = 0.05


def recipe_like(trace: Trace) -> Recipe:
    """The rate of each minute, the variation of the gaps within minutes, the pairs of lengths and
    the share of failures are those of the trace; sessions and prefixes are not taken over.

    Raises TraceError for a trace of fewer than 100 requests or of no length.
    """
    if len(trace) < _MIN_REQUESTS or not trace.duration_s:
        raise TraceError(
            f"{trace.name}: {len(trace)} requests in {trace.duration_s:g} s are too little to "
            f"imitate; at least {_MIN_REQUESTS} are needed, not all at once"
        )
    times_s = np.array([request.arrival_s for request in spread_ticks(trace)])
    # A short trace has few minutes: windows as short as needed to see the rate change.
    window_s = min(_WINDOW_S, trace.duration_s / _MIN_WINDOWS)
    cvs = window_gap_cvs(times_s, window_s) or [gap_cv(times_s) or 1.0]
    succeeded = tuple(
        (request.prompt_tokens, request.output_tokens) for request in trace if not request.failed
    )
    if not succeeded:
        raise TraceError(f"{trace.name}: every request failed; their lengths are unknown")
    return Recipe(
        name=f"like-{trace.name}",
        about=f"more of {trace.name}",
        rate_per_s=len(trace) / trace.duration_s,
        duration_s=trace.duration_s,
        envelope=Recorded(tuple(counts(times_s, window_s).tolist()), window_s),
        gap_cv=max(_MIN_CV, median(cvs)),
        lengths=PairLengths(succeeded),
        failed_share=1 - len(succeeded) / len(trace),
    )
