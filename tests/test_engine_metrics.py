"""What a scraper sees of the engine's snapshots."""

from dataclasses import replace

import pytest
from everything_measured import STATS
from prometheus_client.parser import text_string_to_metric_families
from service_builders import make_kv_share, make_piggyback_stats, sample

from omniserve.metrics import Metrics
from omniserve.settings import ControlStats, ModelStats

IDLE = ModelStats("demo", {}, {}, 0, 1 << 20, 1, 0, 0, 1.0)
BUSY = replace(STATS, control=None)


@pytest.fixture
def stats() -> dict[str, ModelStats]:
    return {}


@pytest.fixture
def metrics(stats: dict[str, ModelStats]) -> Metrics:
    """Shows what `stats` holds at the moment."""
    metrics = Metrics()
    metrics.expect(["demo"], ["interactive", "batch"])
    metrics.watch_engine(lambda: stats)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    labels = {"model": "demo"} | labels
    return sample(metrics, name, (f'{key}="{text}"' for key, text in labels.items()))


def test_requests_and_memory_follow_the_snapshot(
    metrics: Metrics, stats: dict[str, ModelStats]
) -> None:
    assert b"omniserve_running_requests{" not in metrics.exposition()
    stats["demo"] = BUSY
    assert value(metrics, "omniserve_running_requests", tier="batch") == 3
    assert value(metrics, "omniserve_waiting_requests", tier="batch") == 7
    assert value(metrics, "omniserve_kv_used_bytes", pool="device") == 1 << 20
    assert value(metrics, "omniserve_kv_total_bytes", pool="device") == 1 << 21
    assert value(metrics, "omniserve_kv_used_bytes", pool="host") == 21
    assert value(metrics, "omniserve_kv_total_bytes", pool="host") == 22


def test_shares_of_a_kv_budget_follow_the_snapshot(
    metrics: Metrics, stats: dict[str, ModelStats]
) -> None:
    alone = replace(BUSY, kv_share=None, host_kv_share=None)
    stats["demo"] = replace(alone, kv_granted_bytes=41, kv_cached_bytes=42)
    for pool, granted_bytes, cached_bytes in (("device", 41, 42), ("host", 51, 52)):
        assert value(metrics, "omniserve_kv_granted_bytes", pool=pool) == granted_bytes
        assert value(metrics, "omniserve_kv_cached_bytes", pool=pool) == cached_bytes
    assert b"omniserve_kv_moves_total{" not in metrics.exposition()
    stats["demo"] = replace(BUSY, kv_share=make_kv_share(), host_kv_share=make_kv_share(61))
    assert value(metrics, "omniserve_kv_floor_bytes", pool="host") == 61
    check_share(metrics, "device")
    assert value(metrics, "omniserve_kv_floor_bytes", pool="device") == 31


def check_share(metrics: Metrics, pool: str) -> None:
    for direction, num_moves, num_bytes in (("in", 32, 34), ("out", 33, 35)):
        of = {"pool": pool, "direction": direction}
        assert value(metrics, "omniserve_kv_moves_total", **of) == num_moves
        assert value(metrics, "omniserve_kv_moved_bytes_total", **of) == num_bytes
    for le in ("0.002", "1.0"):
        assert value(metrics, "omniserve_kv_move_seconds_bucket", pool=pool, le=le) == 3
    assert value(metrics, "omniserve_kv_move_seconds_count", pool=pool) == 7
    assert value(metrics, "omniserve_kv_move_seconds_sum", pool=pool) == 5.5


def test_gauges_of_idle_tiers_are_zero_not_absent(
    metrics: Metrics, stats: dict[str, ModelStats]
) -> None:
    stats["demo"] = IDLE
    assert value(metrics, "omniserve_running_requests", tier="batch") == 0
    assert value(metrics, "omniserve_waiting_requests", tier="interactive") == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("omniserve_piggyback_active", 1),
        ("omniserve_host_attention_up", 1),
        ("omniserve_offloaded_requests", 11),
        ("omniserve_lane_rows_ready", 12),
        ("omniserve_host_queue_depth", 13),
        ("omniserve_lane_rows_joined_total", 28),
        ("omniserve_lane_residual_bytes", 15),
        ("omniserve_host_kv_read_bytes_total", 20),
        ("omniserve_host_attention_restarts_total", 23),
        ("omniserve_host_tasks_redone_total", 24),
    ],
)
def test_work_on_the_host_follows_the_snapshot(
    metrics: Metrics, stats: dict[str, ModelStats], name: str, expected: float
) -> None:
    stats["demo"] = BUSY
    assert value(metrics, name) == expected


def test_swaps_in_both_directions(metrics: Metrics, stats: dict[str, ModelStats]) -> None:
    stats["demo"] = BUSY
    assert value(metrics, "omniserve_kv_swaps_total", direction="out") == 16
    assert value(metrics, "omniserve_kv_swaps_total", direction="in") == 17
    assert value(metrics, "omniserve_kv_swap_bytes_total", direction="out") == 18
    assert value(metrics, "omniserve_kv_swap_bytes_total", direction="in") == 19


def test_rows_of_every_layer(metrics: Metrics, stats: dict[str, ModelStats]) -> None:
    stats["demo"] = BUSY
    rows = {("on_host", 0): 6, ("on_host", 1): 7, ("ready", 0): 10, ("ready", 1): 2}
    for (state, layer), count in rows.items():
        labels = {"state": state, "layer": str(layer)}
        assert value(metrics, "omniserve_lane_layer_rows", **labels) == count


def test_hops_are_a_histogram_over_steps(metrics: Metrics, stats: dict[str, ModelStats]) -> None:
    stats["demo"] = BUSY
    cumulative = {"0.0": 1, "1.0": 3, "2.0": 6, "3.0": 10, "7.0": 15, "15.0": 21, "+Inf": 28}
    for bound, count in cumulative.items():
        assert value(metrics, "omniserve_lane_hop_steps_bucket", le=bound) == count
    assert value(metrics, "omniserve_lane_hop_steps_count") == 28
    assert value(metrics, "omniserve_lane_hop_steps_sum") == 300


def test_waits_behind_other_models_are_histograms(
    metrics: Metrics, stats: dict[str, ModelStats]
) -> None:
    stats["demo"] = BUSY
    stats["alone"] = replace(IDLE, name="alone")
    layers = {"0.0": 9, "1.0": 13, "2.0": 15, "32.0": 15, "+Inf": 16}
    for bound, count in layers.items():
        assert value(metrics, "omniserve_model_wait_layers_bucket", le=bound) == count
    assert value(metrics, "omniserve_model_wait_layers_sum") == 60
    assert value(metrics, "omniserve_model_wait_seconds_bucket", le="0.01") == 15
    assert value(metrics, "omniserve_model_wait_seconds_sum") == 2.5
    assert value(metrics, "omniserve_steps_parked_total") == 5
    assert b'omniserve_model_wait_seconds_count{model="alone"}' not in metrics.exposition()


def test_rows_in_batches_of_several_models(metrics: Metrics, stats: dict[str, ModelStats]) -> None:
    stats["demo"] = BUSY
    assert value(metrics, "omniserve_shared_layers_total") == 24
    assert value(metrics, "omniserve_shared_layer_rows_total") == 96


CONTROL = ControlStats(
    num_steps=7,
    predicted_s=1.5,
    measured_s=1.25,
    mean_error=0.2,
    used_s={"overhead": 0.5, "lanes": 0.25},
    budget_s=2.5,
    aims={"interactive": 0.875},
)


def test_control_follows_the_snapshot(metrics: Metrics, stats: dict[str, ModelStats]) -> None:
    stats["demo"] = replace(IDLE, control=CONTROL)
    assert value(metrics, "omniserve_step_predicted_seconds_total") == 1.5
    assert value(metrics, "omniserve_step_measured_seconds_total") == 1.25
    assert value(metrics, "omniserve_step_budget_seconds_total") == 2.5
    assert value(metrics, "omniserve_step_error") == 0.2
    assert value(metrics, "omniserve_step_used_seconds_total", kind="overhead") == 0.5
    assert value(metrics, "omniserve_step_used_seconds_total", kind="lanes") == 0.25
    assert value(metrics, "omniserve_tier_aim", tier="interactive") == 0.875


def test_a_model_without_step_times_has_no_series_of_control(
    metrics: Metrics, stats: dict[str, ModelStats]
) -> None:
    stats["demo"] = IDLE
    stats["new"] = replace(IDLE, name="new", control=replace(CONTROL, num_steps=0))
    text = metrics.exposition()
    assert b'omniserve_step_used_seconds_total{kind="overhead",model="new"}' in text
    assert b"omniserve_step_error{" not in text
    assert b'omniserve_step_predicted_seconds_total{model="demo"}' not in text


def test_a_host_that_is_down_or_left_alone(metrics: Metrics, stats: dict[str, ModelStats]) -> None:
    down = replace(make_piggyback_stats(), active=False, host_state="waiting")
    stats["demo"] = replace(BUSY, piggyback=down)
    assert value(metrics, "omniserve_piggyback_active") == 0
    assert value(metrics, "omniserve_host_attention_up") == 0


def test_a_model_without_piggybacking_has_none_of_its_series(
    metrics: Metrics, stats: dict[str, ModelStats]
) -> None:
    stats["demo"], stats["other"] = IDLE, replace(BUSY, name="other")
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    for family in families:
        models = {each.labels.get("model") for each in family.samples}
        if "lane" in family.name or "swap" in family.name or "host" in family.name:
            assert models == {"other"}, family.name
    pools = [each.labels for family in families for each in family.samples if "pool" in each.labels]
    assert {"model": "demo", "pool": "host"} not in pools
    assert {"model": "other", "pool": "host"} in pools
