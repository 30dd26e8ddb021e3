"""What simulated engines would say of themselves."""

from collections.abc import Sequence

from omniserve.bench.run_record import StatusSample
from omniserve.simulate.engine.engine import SimulatedEngine


def sample_status(engines: Sequence[SimulatedEngine], at_s: float) -> StatusSample:
    """All models of all engines together, at this moment."""
    models = [model for engine in engines for model in engine.models.values()]
    schedulers = [model.scheduler for model in models]
    lanes = [model.lanes for model in models if model.lanes is not None]
    block_bytes = [
        model.profile.kv_bytes_per_token * model.scheduler.settings.block_size for model in models
    ]
    budgets = [engine.kv_sharing.num_bytes for engine in engines]
    pairs = list(zip(schedulers, block_bytes, strict=True))
    num_offloaded = sum(scheduler.num_offloaded for scheduler in schedulers)
    return StatusSample(
        at_s=at_s,
        kv_used_bytes=sum(scheduler.counts.num_used_blocks * size for scheduler, size in pairs),
        kv_total_bytes=sum(budget for budget in budgets if budget is not None)
        or sum(scheduler.settings.num_blocks * size for scheduler, size in pairs),
        num_running=sum(scheduler.num_running for scheduler in schedulers) + num_offloaded,
        num_waiting=sum(scheduler.num_waiting for scheduler in schedulers),
        num_offloaded=num_offloaded,
        num_steps=sum(model.num_steps for model in models),
        num_preemptions=sum(scheduler.counts.num_preemptions for scheduler in schedulers),
        num_rows_joined=sum(each.num_rows_joined for each in lanes),
        num_piggybacked_tokens=sum(each.num_tokens for each in lanes),
    )
