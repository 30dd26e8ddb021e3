"""What a scraper sees of requests and of the engine."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_builders import make_output, sample

from omniserve.calls.call_record import CallRecord, in_call
from omniserve.errors import (
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
)
from omniserve.generation import Usage
from omniserve.metrics import Metrics
from omniserve.request_record import RequestRecord
from omniserve.requests import EngineRequest, SamplingParams

LABELS = ('model="demo"', 'tier="batch"')


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def make_record(metrics: Metrics, clock: ManualClock) -> RequestRecord:
    record = RequestRecord(metrics, "r", ("secret prompt",), clock(), clock)
    record.model, record.tier = "demo", "batch"
    return record


def make_sequence(num_tokens: int = 3) -> EngineRequest:
    sampling = SamplingParams(max_tokens=num_tokens)
    return EngineRequest("r#0", "demo", (1, 2, 3, 4), sampling, "best_effort", "batch")


def run_one(metrics: Metrics, clock: ManualClock, error: BaseException | None = None) -> None:
    """Arrives, waits 0.25 s for the first token, then 0.5 s for each of two more."""
    record = make_record(metrics, clock)
    record.start((4,), 1)
    for place, pause_s in enumerate((0.25, 0.5, 0.5)):
        clock.now_s += pause_s
        record.on_output(0, make_output(make_sequence(), place, 3, num_cached_tokens=2))
    record.end(error)


def test_durations_of_one_request(metrics: Metrics, clock: ManualClock) -> None:
    run_one(metrics, clock)
    for name, seconds in (("ttft", 0.25), ("tpot", 0.5), ("e2e", 1.25)):
        assert sample(metrics, f"omniserve_{name}_seconds_count", LABELS) == 1
        assert sample(metrics, f"omniserve_{name}_seconds_sum", LABELS) == pytest.approx(seconds)


def test_tokens_and_outcome_of_one_request(metrics: Metrics, clock: ManualClock) -> None:
    run_one(metrics, clock)
    for kind, count in (("prompt", 4), ("cached", 2), ("output", 3)):
        labels = (*LABELS, f'kind="{kind}"')
        assert sample(metrics, "omniserve_tokens_total", labels) == count
    assert sample(metrics, "omniserve_requests_total", (*LABELS, 'outcome="ok"')) == 1
    assert metrics.num_tokens("demo", "prompt") == 4
    assert metrics.num_tokens("other", "prompt") == 0


def test_piggybacked_tokens_are_part_of_the_output(metrics: Metrics, clock: ManualClock) -> None:
    record = make_record(metrics, clock)
    record.start((4,), 2)
    # Each output says how many there were so far.
    for index, place, num_piggybacked in ((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (0, 2, 2)):
        output = make_output(make_sequence(), place, 3, num_piggybacked_tokens=num_piggybacked)
        record.on_output(index, output)
    record.end(None)
    assert record.usage == Usage(4, 0, num_output_tokens=5, num_piggybacked_tokens=2)
    for kind, count in (("output", 5), ("piggybacked", 2)):
        labels = (*LABELS, f'kind="{kind}"')
        assert sample(metrics, "omniserve_tokens_total", labels) == count


def test_choices_count_their_prompt_once(metrics: Metrics, clock: ManualClock) -> None:
    record = make_record(metrics, clock)
    record.start((4, 9), 2)
    for index in (1, 0, 3, 2):
        clock.now_s += 1
        record.on_output(index, make_output(make_sequence(1), 0, 1, num_cached_tokens=2))
    record.end(None)
    assert record.usage == Usage(num_prompt_tokens=13, num_cached_tokens=4, num_output_tokens=4)
    assert metrics.num_tokens("demo", "prompt") == 13
    assert metrics.num_tokens("demo", "output") == 4
    assert sample(metrics, "omniserve_ttft_seconds_count", LABELS) == 1


def test_one_token_has_no_time_per_token(metrics: Metrics, clock: ManualClock) -> None:
    record = make_record(metrics, clock)
    record.start((4,), 1)
    record.on_output(0, make_output(make_sequence(1), 0, 1))
    record.end(None)
    metrics.expect(["demo"], ["batch"])
    assert sample(metrics, "omniserve_tpot_seconds_count", LABELS) == 0
    assert sample(metrics, "omniserve_e2e_seconds_count", LABELS) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RequestCancelled("x"), "cancelled"),
        (InvalidRequest("x"), "invalid"),
        (EngineUnavailable("x"), "unavailable"),
        (DeadlineExceeded("x"), "late"),
        (Overloaded("x", 1.0), "refused"),
        (EngineError("x"), "error"),
        (ZeroDivisionError(), "error"),
    ],
)
def test_a_failed_request_counts_its_tokens_but_not_its_length(
    metrics: Metrics, clock: ManualClock, error: BaseException, outcome: str
) -> None:
    metrics.expect(["demo"], ["batch"])
    run_one(metrics, clock, error)
    labels = (*LABELS, f'outcome="{outcome}"')
    assert sample(metrics, "omniserve_requests_total", labels) == 1
    assert sample(metrics, "omniserve_requests_total", (*LABELS, 'outcome="ok"')) == 0
    assert sample(metrics, "omniserve_ttft_seconds_count", LABELS) == 1
    assert sample(metrics, "omniserve_e2e_seconds_count", LABELS) == 0
    assert metrics.num_tokens("demo", "output") == 3


def test_a_request_ends_once(metrics: Metrics, clock: ManualClock) -> None:
    record = make_record(metrics, clock)
    record.end(InvalidRequest("x"))
    record.end(None)
    assert sample(metrics, "omniserve_requests_total", (*LABELS, 'outcome="invalid"')) == 1


def test_the_summary_of_a_request_goes_to_its_call(metrics: Metrics, clock: ManualClock) -> None:
    call = CallRecord("grpc")
    with in_call(call):
        run_one(metrics, clock, Overloaded("x", 1.0))
    summary = call.request
    assert summary is not None
    assert (call.request_id, summary.model, summary.tier) == ("r", "demo", "batch")
    assert summary.outcome == "refused"
    assert (summary.ttft_s, summary.tpot_s, summary.e2e_s) == (0.25, 0.5, 1.25)
    assert summary.usage == Usage(4, 2, 3)
    assert [each.event for each in summary.decisions] == ["received", "tokenised", "ended"]
    # What was said is there for those who ask for it by name, and shows up nowhere else.
    assert summary.prompts == ("secret prompt",)
    assert "secret" not in repr(call)


def test_names_are_the_contract_and_nothing_else(metrics: Metrics, clock: ManualClock) -> None:
    metrics.watch_engine(dict)
    run_one(metrics, clock)
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = {(family.name, family.type) for family in families}
    # The others are of the process, and differ between systems.
    assert {each for each in found if each[0].startswith("omniserve_")} == {
        ("omniserve_ttft_seconds", "histogram"),
        ("omniserve_tpot_seconds", "histogram"),
        ("omniserve_e2e_seconds", "histogram"),
        ("omniserve_requests", "counter"),
        ("omniserve_tokens", "counter"),
        ("omniserve_calls", "counter"),
        ("omniserve_refusals", "counter"),
        ("omniserve_trace_spans", "counter"),
        ("omniserve_model_loads", "counter"),
        ("omniserve_model_unloads", "counter"),
        ("omniserve_model_load_seconds", "histogram"),
        ("omniserve_model_sleeps", "counter"),
        ("omniserve_model_wakes", "counter"),
        ("omniserve_model_wake_seconds", "histogram"),
        ("omniserve_build_info", "gauge"),
        ("omniserve_config_last_reload_successful", "gauge"),
        ("omniserve_config_last_reload_timestamp_seconds", "gauge"),
        ("omniserve_steps", "counter"),
        ("omniserve_preemptions", "counter"),
        ("omniserve_goodput_tokens", "counter"),
        ("omniserve_slo_attainment", "gauge"),
        ("omniserve_step_predicted_seconds", "counter"),
        ("omniserve_step_measured_seconds", "counter"),
        ("omniserve_step_budget_seconds", "counter"),
        ("omniserve_step_used_seconds", "counter"),
        ("omniserve_step_error", "gauge"),
        ("omniserve_tier_aim", "gauge"),
        ("omniserve_model_wait_layers", "histogram"),
        ("omniserve_model_wait_seconds", "histogram"),
        ("omniserve_steps_parked", "counter"),
        ("omniserve_running_requests", "gauge"),
        ("omniserve_waiting_requests", "gauge"),
        ("omniserve_kv_used_bytes", "gauge"),
        ("omniserve_kv_total_bytes", "gauge"),
        ("omniserve_weights_bytes", "gauge"),
        ("omniserve_weights_saved_bytes", "gauge"),
        ("omniserve_shared_layers", "counter"),
        ("omniserve_shared_layer_rows", "counter"),
        ("omniserve_kv_granted_bytes", "gauge"),
        ("omniserve_kv_cached_bytes", "gauge"),
        ("omniserve_kv_floor_bytes", "gauge"),
        ("omniserve_kv_moves", "counter"),
        ("omniserve_kv_moved_bytes", "counter"),
        ("omniserve_kv_move_seconds", "histogram"),
        ("omniserve_piggyback_active", "gauge"),
        ("omniserve_offloaded_requests", "gauge"),
        ("omniserve_lane_rows_joined", "counter"),
        ("omniserve_lane_rows_ready", "gauge"),
        ("omniserve_lane_layer_rows", "gauge"),
        ("omniserve_lane_residual_bytes", "gauge"),
        ("omniserve_lane_hop_steps", "histogram"),
        ("omniserve_kv_swaps", "counter"),
        ("omniserve_kv_swap_bytes", "counter"),
        ("omniserve_host_attention_up", "gauge"),
        ("omniserve_host_attention_restarts", "counter"),
        ("omniserve_host_queue_depth", "gauge"),
        ("omniserve_host_kv_read_bytes", "counter"),
        ("omniserve_host_tasks_redone", "counter"),
    }


def test_series_exist_before_the_first_request(metrics: Metrics) -> None:
    metrics.expect(["demo"], ["interactive", "batch"])
    assert sample(metrics, "omniserve_requests_total", (*LABELS, 'outcome="ok"')) == 0
    assert sample(metrics, "omniserve_ttft_seconds_count", LABELS) == 0
