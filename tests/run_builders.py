"""Records of runs that never happened."""

import random

from omniserve.bench.run_record import (
    Outcome,
    RequestRecord,
    RunRecord,
    ServerClock,
    StatusSample,
    StreamInfo,
)

CHAT = StreamInfo("chat", "latency_sensitive", "demo", "interactive", ttft_ms=500, tpot_ms=100)
BATCH = StreamInfo("batch", "best_effort", "demo", "batch", is_open_loop=False)


def make_request(
    stream: str = "chat",
    at_s: float = 0.0,
    ttft_s: float = 0.25,
    tpot_s: float = 0.0625,
    num_tokens: int = 5,
    outcome: Outcome = "done",
    error: str = "",
    late_s: float = 0.0,
    prompt_tokens: int = 10,
) -> RequestRecord:
    """Tokens at even distances; it ends with the last one."""
    times = [at_s + ttft_s + index * tpot_s for index in range(num_tokens)]
    return RequestRecord(
        stream,
        0,
        at_s,
        prompt_tokens,
        max(1, num_tokens),
        sent_s=at_s + late_s,
        token_times_s=times,
        ended_s=times[-1] if times else at_s,
        outcome=outcome,
        error=error,
    )


def make_sample(at_s: float, steps: int = 0, joined: int = 0, used: int = 0) -> StatusSample:
    return StatusSample(at_s, used, 64 << 20, 3, 2, 1, steps, steps // 10, joined, joined // 4)


def make_run(
    *requests: RequestRecord,
    duration_s: float = 10.0,
    samples: list[StatusSample] | None = None,
    num_layers: int | None = 4,
    title: str = "a run",
) -> RunRecord:
    return RunRecord(
        title=title,
        target="OmniServe 0.1, cpu",
        streams=[CHAT, BATCH],
        duration_s=duration_s,
        requests=list(requests),
        samples=samples or [],
        num_layers=num_layers,
    )


def busy_run(seed: int = 0, duration_s: float = 60.0, title: str = "a run") -> RunRecord:
    """Some of everything."""
    chance = random.Random(seed)
    record = make_run(duration_s=duration_s, title=title)
    at_s = -5.0
    while at_s < duration_s:
        outcome: Outcome = "failed" if chance.random() < 0.02 else "done"
        record.requests.append(
            make_request(
                at_s=at_s,
                ttft_s=chance.lognormvariate(-2, 0.7),
                tpot_s=chance.lognormvariate(-3, 0.4),
                num_tokens=chance.randint(1, 60) if outcome == "done" else 0,
                outcome=outcome,
                error="HTTP 500: <b>broken</b>" if outcome == "failed" else "",
                late_s=chance.expovariate(2000),
            )
        )
        at_s += chance.expovariate(4)
    for place in range(40):
        begin_s = chance.uniform(-5, duration_s)
        record.requests.append(
            make_request("batch", begin_s, chance.uniform(0.5, 3), 0.1, 30 + place)
        )
    record.samples = [
        make_sample(at / 2, 20 * (at + 20), 200 * (at + 20), (30 + at % 20) << 20)
        for at in range(-10, int(2 * duration_s))
    ]
    record.server_clock = [
        ServerClock("", 250, 210.0, 55.0, None),
        ServerClock("chat", 200, 150.0, 50.0, 2000.0),
    ]
    record.generator_cores = 0.07
    record.facts = {"seed": seed, "machine": {"cores": 2, "memory_gib": 24}, "trace": "azure-conv"}
    return record
