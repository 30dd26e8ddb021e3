"""Profiles and what they were measured on, for tests."""

from omniserve.machine import Machine
from omniserve.profiling.judged_steps import JudgedStep, JudgedSteps
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.messages import Effort
from omniserve.profiling.profile import HostModel, Profile
from scheduler.step_time import LinearStepTime, StepCosts, StepShape

MEASURED_ON = MeasuredOn(
    cpu="a processor",
    vector_path="avx2",
    num_cores=4,
    device="cpu, 4 threads",
    dtype="bfloat16",
    architecture="0123",
    block_size=32,
    max_step_tokens=512,
    max_running_requests=64,
    host_attention_threads=1,
    torch="2.0",
    omniserve="0.1",
)
ALONE = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 2e-3), (64, 4e-3), (512, 3e-2)),
    decode_row_s=1e-5,
    prefill_pair_s=2e-9,
    sampled_row_s=2e-6,
)
BESIDE = StepCosts(overhead_s=1e-3, dense_ladder=((1, 5e-3), (512, 9e-2)), lane_row_s=3e-5)
TINY_EFFORT = Effort(
    "quick",
    alone_s=0.5,
    beside_host_s=0.4,
    host_s=0.4,
    max_scenes=12,
    max_prompt_tokens=512,
    max_medley_steps=20,
    max_works=3,
)


def make_profile(measured_on: MeasuredOn = MEASURED_ON) -> Profile:
    return Profile(
        model="demo",
        device="cpu, 4 threads",
        num_layers=4,
        kv_bytes_per_token=4096,
        max_positions=8192,
        step_time=LinearStepTime(ALONE, BESIDE),
        host=HostModel(kv_bytes_per_s=5e9),
        machine=Machine(4, 1 << 30, 1 << 29),
        measured_on=measured_on,
        measured_at="2026-01-02T03:04:05+00:00",
        effort="quick",
        judged=JudgedSteps(
            alone=judged(ALONE, 0.0, 0.02),
            beside_host=judged(BESIDE, 0.0, 0.08),
            with_lanes=judged(BESIDE, 4.0, 0.2),
        ),
    )


def judged(costs: StepCosts, num_lane_rows: float, error: float) -> tuple[JudgedStep, ...]:
    """Ten decodes and ten prompts; the fit says so much too little of each."""
    decodes = [
        StepShape(num_decode_rows=rows, num_lane_rows=num_lane_rows) for rows in range(1, 11)
    ]
    prompts = [
        StepShape(num_prefill_tokens=tokens, num_lane_rows=num_lane_rows)
        for tokens in range(16, 176, 16)
    ]
    return tuple(
        JudgedStep(shape, costs.step_s(shape), (1.0 - error) * costs.step_s(shape))
        for shape in (*decodes, *prompts)
    )
