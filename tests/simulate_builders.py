"""Builders for simulated runs."""

from collections.abc import Iterable, Sequence
from random import Random
from statistics import mean

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.run_record import RequestRecord, RunRecord, StreamInfo
from omniserve.bench.trace.trace import Trace, TraceRequest
from omniserve.profiling.profile import HostModel, Profile
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings, PiggybackSettings
from omniserve.simulate.run import Simulation
from scheduler.step_time import LinearStepTime, StepCosts

KV_BYTES_PER_TOKEN = 1 << 10
BLOCK_SIZE = 16
NUM_LAYERS = 8

COSTS = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 8e-3), (101, 18e-3)),
    decode_context_token_s=2e-6,
    prefill_pair_s=1e-6,
)
"""A step of one row takes 9 ms and a little; each further row 0.1 ms."""
HOST = HostModel(kv_bytes_per_s=200e6, task_overhead_s=2e-6, copy_bytes_per_s=1e9)
PIGGYBACK = PiggybackSettings(
    host_kv_bytes=64 << 20, max_offloaded_requests=64, max_lane_rows=16, max_lane_rows_beside_ls=8
)


def make_profile(costs: StepCosts = COSTS, host: HostModel | None = HOST) -> Profile:
    return Profile(
        model="m",
        device="made up",
        num_layers=NUM_LAYERS,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        max_positions=4096,
        step_time=LinearStepTime(costs),
        host=host,
    )


def make_settings(
    num_blocks: int = 512,
    piggyback: PiggybackSettings | None = None,
    max_step_tokens: int = 128,
) -> EngineSettings:
    model = ModelSettings(
        name="m",
        path="/nowhere",
        device_kv_bytes=num_blocks * BLOCK_SIZE * KV_BYTES_PER_TOKEN,
        block_size=BLOCK_SIZE,
        max_step_tokens=max_step_tokens,
        best_effort_tokens_beside_ls=8,
        piggyback=piggyback,
    )
    return EngineSettings(DeviceSettings("cpu"), (model,))


def chats(
    requests: Iterable[tuple[float, int, int]], service_class: str = "latency_sensitive"
) -> TraceStream:
    """Of (arrival in seconds, prompt tokens, output tokens)."""
    assert service_class in ("latency_sensitive", "best_effort")
    is_ls = service_class == "latency_sensitive"
    info = StreamInfo(
        name="chat",
        service_class="latency_sensitive" if is_ls else "best_effort",
        model="m",
        ttft_ms=60.0,
        tpot_ms=25.0,
    )
    return TraceStream(info, Trace("chats", tuple(TraceRequest(*each) for each in requests)))


def poisson(rate: float, num_requests: int, seed: int = 0) -> list[tuple[float, int, int]]:
    """Chats of 20 to 200 prompt tokens and 5 to 30 of output."""
    draw, at_s, requests = Random(seed), 0.0, []
    for _ in range(num_requests):
        at_s += draw.expovariate(rate)
        requests.append((at_s, draw.randint(20, 200), draw.randint(5, 30)))
    return requests


def backlog(concurrency: int, lengths: Sequence[tuple[int, int]] = ((200, 60),)) -> BacklogStream:
    info = StreamInfo("batch", "best_effort", "m", is_open_loop=False)
    requests = tuple(TraceRequest(0.0, *each) for each in lengths)
    return BacklogStream(info, Trace("documents", requests), concurrency)


def run_simulation(
    streams: Sequence[Stream],
    settings: EngineSettings | None = None,
    profile: Profile | None = None,
    duration_s: float = 8.0,
    num_engines: int = 1,
    seed: int = 0,
) -> RunRecord:
    """A run whose books agree at its end; piggybacking leaves nothing behind."""
    options = LoadOptions(duration_s=duration_s, warm_up_s=0.0, drain_s=60.0, seed=seed)
    profiles = {"m": profile or make_profile()}
    simulation = Simulation(streams, settings or make_settings(), profiles, options, num_engines)
    simulation.run()
    simulation.fleet.check_integrity()
    return simulation.record()


def of_stream(record: RunRecord, name: str) -> list[RequestRecord]:
    return [request for request in record.requests if request.stream == name]


def mean_ttft_s(record: RunRecord, name: str = "chat") -> float:
    return mean(each.ttft_s for each in of_stream(record, name) if each.ttft_s is not None)


def tokens_per_s(record: RunRecord, name: str = "batch") -> float:
    times = [time for each in of_stream(record, name) for time in each.token_times_s]
    return sum(0 <= time < record.duration_s for time in times) / record.duration_s


def attainment(record: RunRecord, ttft_s: float, tpot_s: float) -> float:
    requests = of_stream(record, "chat")
    met = [
        each.ttft_s is not None
        and each.ttft_s <= ttft_s
        and each.outcome == "done"
        and (each.tpot_s or 0.0) <= tpot_s
        for each in requests
    ]
    return mean(met)
