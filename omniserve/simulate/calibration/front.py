"""What clients and front add to the engine's own times: measured through a daemon, and explained
by simulating the same load without it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import Enum
from statistics import median

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.run_record import RequestRecord, RunRecord, StreamInfo
from omniserve.bench.trace.trace import Trace, TraceRequest
from omniserve.profiling.profile import FrontLatency

_PROMPT_TOKENS = 64
_OUTPUT_TOKENS = 16
_LONG_OUTPUT_TOKENS = 256
_SHORT_PROMPT_TOKENS, _SHORT_OUTPUT_TOKENS = 16, 2
_CONCURRENCY = 8
_WARM_UP_S = 1.0
_MIN_GAP_S = 0.1
_IDLE_SHARE = 3.0
"""Of the time that a lone request takes: the pause until the next one, so that it is alone."""


class Load(Enum):
    """What the front is measured under."""

    ALONE = "requests one by one"
    ONE = "one long answer at a time"
    LONG = "long answers"
    SHORT = "short answers"


@dataclass(frozen=True, slots=True)
class FrontFigures:
    """What clients see under those loads."""

    ttft_s: float
    """Median, of requests that come to an idle daemon."""
    lone_token_s: float
    """Per token of long answers, one at a time: the inverse of their rate."""
    token_s: float
    """The same of several at a time, all together."""
    request_s: float
    """Per short request, all requests together."""


def front_streams(load: Load, model: str, options: LoadOptions) -> list[Stream]:
    """A load for a model's default tier: which one it is does not matter to a load by itself."""
    if load is Load.ALONE:
        info = StreamInfo("alone", "latency_sensitive", model)
        total_s = options.warm_up_s + options.duration_s
        num = max(1, int(total_s / _MIN_GAP_S / _IDLE_SHARE))
        requests = (
            TraceRequest(place * total_s / num, _PROMPT_TOKENS, _OUTPUT_TOKENS)
            for place in range(num)
        )
        return [TraceStream(info, Trace(load.value, tuple(requests)))]
    info = StreamInfo(load.value, "best_effort", model, is_open_loop=False)
    lengths = (
        (_SHORT_PROMPT_TOKENS, _SHORT_OUTPUT_TOKENS)
        if load is Load.SHORT
        else (_PROMPT_TOKENS, _LONG_OUTPUT_TOKENS)
    )
    concurrency = 1 if load is Load.ONE else _CONCURRENCY
    return [BacklogStream(info, Trace(load.value, (TraceRequest(0.0, *lengths),)), concurrency)]


def front_options(duration_s: float) -> LoadOptions:
    return LoadOptions(duration_s=duration_s, warm_up_s=_WARM_UP_S, drain_s=10.0)


def figures_of(records: Mapping[Load, RunRecord]) -> FrontFigures:
    """Of one run under each load."""
    alone, one, long, short = (records[load] for load in Load)
    ttfts = [each.ttft_s for each in _due(alone) if each.ttft_s is not None]
    return FrontFigures(
        ttft_s=median(ttfts or [0.0]),
        lone_token_s=one.duration_s / max(1, _tokens(one)),
        token_s=long.duration_s / max(1, _tokens(long)),
        request_s=short.duration_s * _SHORT_OUTPUT_TOKENS / max(1, _tokens(short)),
    )


def median_of(rounds: Sequence[FrontFigures]) -> FrontFigures:
    """Of each figure by itself."""
    return FrontFigures(*(median(values) for values in zip(*map(astuple, rounds), strict=True)))


def fit_front(real: FrontFigures, simulate: Callable[[FrontLatency], FrontFigures]) -> FrontLatency:
    """The front with which `simulate` shows what was real.

    Where the engine shares its cores with front and clients, they take time from it with every
    step, token and request. Steps of one row and of several tell the first two apart; what then is
    left of a short request is its own, and what is left of a lone one's TTFT is its way.
    """
    bare = simulate(FrontLatency())
    one_row_s = real.lone_token_s - bare.lone_token_s
    many_rows_s = (real.token_s - bare.token_s) * _CONCURRENCY
    front = FrontLatency(**_stolen(one_row_s, many_rows_s, _CONCURRENCY))
    request_s = max(0.0, real.request_s - simulate(front).request_s)
    front = replace(front, stolen_s_per_request=request_s)
    ways_s = max(0.0, real.ttft_s - simulate(front).ttft_s)
    # Only their sum can be seen; halves are as good as any parts.
    return replace(front, way_in_s=ways_s / 2, way_out_s=ways_s / 2)


def _stolen(one_row_s: float, many_rows_s: float, num_rows: int) -> dict[str, float]:
    """Of a step and of a token, from what steps of one and of several rows take too long."""
    token_s = (many_rows_s - one_row_s) / (num_rows - 1)
    step_s = one_row_s - token_s
    if step_s < 0.0:
        step_s, token_s = 0.0, many_rows_s / num_rows
    elif token_s < 0.0:
        step_s, token_s = (one_row_s + many_rows_s) / 2, 0.0
    return {
        "stolen_s_per_step": max(0.0, step_s),
        "stolen_s_per_token": max(0.0, token_s),
    }


def _due(record: RunRecord) -> list[RequestRecord]:
    return [each for each in record.requests if 0.0 <= each.scheduled_s < record.duration_s]


def _tokens(record: RunRecord) -> int:
    """That came within the measured part."""
    return sum(
        0.0 <= at_s < record.duration_s for each in record.requests for at_s in each.token_times_s
    )
