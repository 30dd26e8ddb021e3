"""Step times of a device that one does not have, from its two peak rates."""

from dataclasses import dataclass

from scheduler.step_time import LinearStepTime, StepCosts


@dataclass(frozen=True, slots=True)
class DevicePeaks:
    """An accelerator, as its vendor and experience describe it."""

    flops_per_s: float
    """Dense, in the model's number format."""
    bytes_per_s: float
    """Of device memory."""
    flops_share: float = 0.6
    """Of the peak, what matrix products get to."""
    bytes_share: float = 0.8
    """Of the peak, what reads get to."""
    step_overhead_s: float = 1e-3


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a decoder computes and reads for a token."""

    num_parameters: int
    bytes_per_parameter: float
    num_layers: int
    query_size: int
    """Query heads times head size."""
    kv_bytes_per_token: int


def roofline_step_time(model: ModelSize, device: DevicePeaks) -> LinearStepTime:
    """The roofline model (Williams et al., 2009): a part takes as long as its arithmetic or its
    reads, whichever is longer.

    Dense layers do 2 operations for each parameter and row, and read every parameter once a step.
    Attention of a decode row reads the KV of its context; a prefill row computes 4 operations for
    each query element and token it attends to.
    """
    flops_per_s = device.flops_per_s * device.flops_share
    bytes_per_s = device.bytes_per_s * device.bytes_share
    read_s = model.num_parameters * model.bytes_per_parameter / bytes_per_s
    row_s = 2 * model.num_parameters / flops_per_s
    knee = max(1, int(read_s / row_s))
    costs = StepCosts(
        overhead_s=device.step_overhead_s,
        dense_ladder=((knee, knee * row_s if knee > 1 else max(read_s, row_s)),)
        + ((2 * knee, 2 * knee * row_s),),
        decode_context_token_s=model.kv_bytes_per_token / bytes_per_s,
        prefill_pair_s=4 * model.num_layers * model.query_size / flops_per_s,
    )
    return LinearStepTime(alone=costs)
