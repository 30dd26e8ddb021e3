"""A scrape with every series that a daemon can have: models on the host, control, tenants."""

from dataclasses import replace
from pathlib import Path

from service_builders import ScriptedEngine, make_kv_share, make_piggyback_stats
from tenant_builders import make_tenant, make_tenanted_service

from omniserve.promise import Verdict
from omniserve.settings import (
    ControlStats,
    JointLayerStats,
    LayerWaitStats,
    ModelStats,
    WeightStats,
)

CONTROL = ControlStats(
    num_steps=7,
    predicted_s=1.5,
    measured_s=1.25,
    mean_error=0.2,
    used_s={"overhead": 0.5, "lanes": 0.25},
    budget_s=2.5,
    aims={"interactive": 0.875},
)
WAITS = LayerWaitStats(
    num_parked=5,
    layer_counts=(9, 4, 2, 0, 0, 0, 0, 1),
    layer_sum=60,
    second_counts=(9, 1, 2, 3, 0, 0, 0, 0, 1),
    second_sum=2.5,
)
STATS = ModelStats(
    name="demo",
    running={"batch": 3},
    waiting={"batch": 7},
    kv_used_bytes=1 << 20,
    kv_total_bytes=1 << 21,
    num_steps=1,
    num_preemptions=0,
    num_cached_prompt_tokens=0,
    step_ms=1.0,
    piggyback=make_piggyback_stats(),
    control=CONTROL,
    layer_waits=WAITS,
    weights=WeightStats(1 << 20, 3 << 20, 1 << 20, {"other": 3 << 20}),
    joint_layers=JointLayerStats(num_layers=24, num_rows=96),
    kv_granted_bytes=1 << 21,
    kv_cached_bytes=1 << 19,
    kv_share=make_kv_share(),
    host_kv_share=make_kv_share(),
)


def full_exposition(checkpoint: Path) -> str:
    """What a scraper gets after at least one of everything."""
    engine = ScriptedEngine(stats={"demo": STATS, "other": replace(STATS, name="other")})
    quota = {"input_tokens_per_minute": 1000, "output_tokens_per_minute": 1000}
    metrics = make_tenanted_service(
        checkpoint, make_tenant("acme", quota=quota), engine=engine
    ).metrics
    metrics.attainment.note("demo", "interactive", Verdict(ttft=True, tpot=True))
    metrics.calls.labels("grpc", "Inference.Generate", "OK").inc()
    return metrics.exposition().decode()
