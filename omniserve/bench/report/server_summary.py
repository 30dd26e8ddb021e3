"""What the server's own status says of the window."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from omniserve.bench.report.distributions import some_of
from omniserve.bench.report.run_summary import ServerSummary
from omniserve.bench.run_record import RunRecord, StatusSample


def summarise_server(record: RunRecord) -> ServerSummary | None:
    """None where fewer than two samples fell into the window."""
    samples = [each for each in record.samples if 0 <= each.at_s <= record.duration_s]
    # A restarted engine counts from 0 again; what was before it cannot be compared.
    for place in range(len(samples) - 1, 0, -1):
        if samples[place].num_steps < samples[place - 1].num_steps:
            samples = samples[place:]
            break
    if len(samples) < 2 or samples[-1].at_s <= samples[0].at_s:
        return None
    first, last = samples[0], samples[-1]
    elapsed_s = last.at_s - first.at_s
    num_layers = record.num_layers or 1
    return ServerSummary(
        kv_total_bytes=last.kv_total_bytes,
        kv_used_mean_bytes=_mean(samples, lambda each: each.kv_used_bytes),
        kv_used_max_bytes=max(each.kv_used_bytes for each in samples),
        num_running_mean=_mean(samples, lambda each: each.num_running),
        num_waiting_mean=_mean(samples, lambda each: each.num_waiting),
        num_offloaded_mean=_mean(samples, lambda each: each.num_offloaded),
        num_preemptions=last.num_preemptions - first.num_preemptions,
        steps_per_s=(last.num_steps - first.num_steps) / elapsed_s,
        lane_rows_per_step=_lanes(first, last, num_layers),
        is_per_layer=record.num_layers is not None,
        piggybacked_tokens_per_s=(
            (last.num_piggybacked_tokens - first.num_piggybacked_tokens) / elapsed_s
        ),
        kv_used=some_of([(each.at_s, each.kv_used_bytes) for each in samples]),
        lanes=some_of(
            [
                (after.at_s, lanes)
                for before, after in pairwise(samples)
                if (lanes := _lanes(before, after, num_layers)) is not None
            ]
        ),
    )


def _lanes(before: StatusSample, after: StatusSample, num_layers: int) -> float | None:
    """Lane rows per step and layer between two samples; None without a step."""
    num_steps = after.num_steps - before.num_steps
    if num_steps <= 0:
        return None
    return (after.num_rows_joined - before.num_rows_joined) / num_steps / num_layers


def _mean(samples: Sequence[StatusSample], value_of: Callable[[StatusSample], int]) -> float:
    return sum(map(value_of, samples)) / len(samples)
