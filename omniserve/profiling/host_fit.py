"""From measured work on the host to the model of it."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from omniserve.others_meter import QUIET_CORES
from omniserve.profiling.judged_steps import JudgedStep
from omniserve.profiling.messages import HostMeasured, HostSample, StepSample
from omniserve.profiling.nonnegative import (
    nonnegative_least_deviations,
    nonnegative_least_squares,
)
from omniserve.profiling.profile import HostModel
from scheduler.step_time import StepCosts, StepShape

_HELD_OUT = 4
"""One step of so many judges the fit of the others."""
_BUSY_ROWS = 8
"""Offloaded requests from which the host, rather than the way to it, sets the pace."""


def fit_host(
    measured: HostMeasured, beside: StepCosts, num_layers: int, *, takes_cores: bool = True
) -> tuple[HostModel, StepCosts]:
    """The host, and `beside` with what a lane row costs a step; where the host takes cores of the
    device, with what its work costs all steps, too.

    A row takes the host a fixed time and the time of reading its KV; what of a hop neither step nor
    host takes, with one request alone, is delay.
    """
    read_s, task_s = _service(measured.samples)
    kept = [step for place, step in enumerate(measured.steps) if place % _HELD_OUT != 1]
    quiet = [step for step in kept if step.others_cores <= QUIET_CORES]
    if kept and takes_cores:
        costs = _while_active(quiet or kept, beside)
    elif kept:
        costs = replace(beside, lane_row_s=_lane_row_s_of(quiet or kept, beside))
    else:
        costs = replace(beside, lane_row_s=_lane_row_s(measured.samples, beside, num_layers))
    host = HostModel(
        kv_bytes_per_s=1.0 / read_s,
        task_overhead_s=task_s,
        result_delay_s=_delay_s(measured.samples, costs, num_layers, read_s, task_s),
        copy_bytes_per_s=measured.copy_bytes_per_s,
        speed=measured.speed,
    )
    return host, costs


def judge_active(measured: HostMeasured, costs: StepCosts) -> tuple[JudgedStep, ...]:
    """Undisturbed steps with lane rows at which `fit_host` did not look, and what its costs say."""
    return tuple(
        JudgedStep(step.shape, step.seconds, costs.step_s(step.shape))
        for place, step in enumerate(measured.steps)
        if place % _HELD_OUT == 1
        and step.others_cores <= QUIET_CORES
        # A step may have come before any row of the host's was ready.
        and step.shape.num_lane_rows
    )


def _while_active(steps: Sequence[StepSample], costs: StepCosts) -> StepCosts:
    """Of a device whose host is at work: by a factor slower, as they share caches and memory, with
    so much more for each step that looks after rows, and for each lane row."""
    seconds = np.array([step.seconds for step in steps])
    idle_s = np.array([costs.step_s(step.shape) for step in steps])
    lane_rows = np.array([step.shape.num_lane_rows for step in steps])
    matrix = np.stack([idle_s, np.ones(len(steps)), lane_rows], axis=1) / seconds[:, None]
    slower, step_s, row_s = nonnegative_least_deviations(
        matrix, 1.0 - idle_s / seconds, np.ones(len(steps))
    ).tolist()
    active = costs.times(1.0 + slower)
    return replace(active, overhead_s=active.overhead_s + step_s, lane_row_s=row_s)


def _lane_row_s_of(steps: Sequence[StepSample], costs: StepCosts) -> float:
    """For which the relative errors' squares sum to the least."""
    rows = np.array([step.shape.num_lane_rows / step.seconds for step in steps])
    rest = np.array([1.0 - costs.step_s(step.shape) / step.seconds for step in steps])
    square = float(rows @ rows)
    return max(0.0, float(rows @ rest) / square) if square else 0.0


def _service(samples: Sequence[HostSample]) -> tuple[float, float]:
    """Seconds for a byte of KV, and for a row besides."""
    busy = [each for each in samples if each.num_offloaded >= _BUSY_ROWS and each.num_ls_rows == 0]
    used = busy or samples
    matrix = np.array([[each.kv_read_bytes, each.num_rows_joined] for each in used], dtype=float)
    seconds = np.array([each.seconds for each in used])
    read_s, task_s = nonnegative_least_squares(matrix / seconds[:, None], np.ones(len(used)))
    # Rows so short that reading them cannot be told from handling them.
    fastest = max(each.kv_read_bytes / each.seconds for each in used)
    return max(float(read_s), 0.1 / fastest), float(task_s)


def _lane_row_s(samples: Sequence[HostSample], costs: StepCosts, num_layers: int) -> float:
    surplus = []
    for each in samples:
        shape = _shape(each, num_layers)
        # Steps that wait for rows tell nothing of what rows cost.
        if each.num_ls_rows and shape.num_lane_rows >= 1.0:
            step_s = each.seconds / each.num_steps
            surplus.append((step_s - costs.step_s(shape)) / shape.num_lane_rows)
    return max(0.0, median(surplus)) if surplus else 0.0


def _delay_s(
    samples: Sequence[HostSample],
    costs: StepCosts,
    num_layers: int,
    read_s: float,
    task_s: float,
) -> float:
    alone = [each for each in samples if each.num_offloaded == 1 and each.num_rows_joined]
    if not alone:
        return 0.0
    sample = alone[0]
    # Rows of one request join a layer at a time: the others of the step are not computed.
    hop_s = sample.seconds / sample.num_rows_joined
    service_s = task_s + read_s * sample.kv_read_bytes / sample.num_rows_joined
    one_row = replace(_shape(sample, num_layers), num_lane_rows=1.0)
    layer_s = (costs.step_s(one_row) - costs.overhead_s) / num_layers
    around_s = costs.overhead_s * sample.num_steps / sample.num_rows_joined
    return max(0.0, hop_s - service_s - layer_s - around_s)


def _shape(sample: HostSample, num_layers: int) -> StepShape:
    steps = max(1, sample.num_steps)
    return StepShape(
        num_decode_rows=sample.num_ls_rows,
        decode_context_tokens=sample.ls_context_tokens,
        num_lane_rows=sample.num_rows_joined / steps / num_layers,
        num_sampled_rows=sample.num_ls_rows + round(sample.num_tokens / steps),
    )
