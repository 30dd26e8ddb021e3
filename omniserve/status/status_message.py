"""Everything that is known of the server at one moment, as a protobuf message."""

from collections.abc import Collection, Iterable, Mapping, Set

from prometheus_client import Counter

from omniserve.access.quotas import TenantStatus
from omniserve.config_tier import TierConfig
from omniserve.metrics import Outcome
from omniserve.model_life.standing import LoadProgress, ModelStanding
from omniserve.service import GenerationService
from omniserve.settings import KvShareStats, ModelInfo, ModelStats, PiggybackStats, WeightStats
from omniserve.status.history import ModelTier
from omniserve.status.host_usage import HostUsage
from omniserve.status.request_board import RefusedRequest, RequestBoard, RequestStanding
from omniserve.v1 import omniserve_pb2 as pb

_REFUSED: tuple[Outcome, ...] = ("refused", "over_quota", "denied")
"""Outcomes of requests that were right, and that the server would not have."""


def status_message(
    service: GenerationService,
    *,
    host: HostUsage,
    tokens_per_s: Mapping[ModelTier, float],
    tenants: Iterable[TenantStatus],
    reload_error: str,
    now_s: float,
) -> pb.Status:
    """`tokens_per_s` is the output of late; `now_s` is on the clock of the service."""
    status = service.status()
    return pb.Status(
        version=status.version,
        state=status.state,
        device=status.device,
        uptime_s=status.uptime_s,
        num_engine_restarts=status.num_engine_restarts,
        models=_models(service, status.stats, now_s),
        tiers=_tiers(service, status.stats, tokens_per_s),
        host=_host(host, status.stats),
        requests=_requests(service.board, status.stats, now_s),
        refusals=[_refusal(each, now_s) for each in service.board.refusals],
        tenants=map(_tenant, tenants),
        reload_error=reload_error,
    )


def totals_by_tier(counter: Counter, label: str, values: Collection[str]) -> dict[ModelTier, int]:
    """Of the series of a counter whose label has one of these values."""
    totals: dict[ModelTier, int] = {}
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total") and sample.labels[label] in values:
                name = sample.labels["model"], sample.labels["tier"]
                totals[name] = totals.get(name, 0) + int(sample.value)
    return totals


def _models(
    service: GenerationService, stats: Mapping[str, ModelStats], now_s: float
) -> list[pb.ModelStatus]:
    messages = []
    for model in service.roster:
        message = _model(model.name, stats.get(model.name), service.engine.models.get(model.name))
        _tell_standing(message, model, now_s)
        if model.state == "serving" and not service.engine.ready:
            # An engine that starts loads all of them.
            message.state = "loading"
        message.prompt_tokens = service.metrics.num_tokens(model.name, "prompt")
        message.cached_tokens = service.metrics.num_tokens(model.name, "cached")
        message.output_tokens = service.metrics.num_tokens(model.name, "output")
        messages.append(message)
    return messages


def _model(name: str, stats: ModelStats | None, info: ModelInfo | None) -> pb.ModelStatus:
    """Without a snapshot, as while the engine restarts, only the name is set."""
    if stats is None:
        return pb.ModelStatus(name=name)
    return pb.ModelStatus(
        name=name,
        running=stats.running,
        waiting=stats.waiting,
        kv_used_bytes=stats.kv_used_bytes,
        kv_total_bytes=stats.kv_total_bytes,
        num_steps=stats.num_steps,
        num_preemptions=stats.num_preemptions,
        step_ms=stats.step_ms,
        piggyback=None
        if stats.piggyback is None
        else _piggyback(stats.piggyback, stats.host_kv_share),
        weights=None if stats.weights is None else _weights(stats.weights),
        kv_share=None
        if stats.kv_share is None
        else _kv_share(stats.kv_granted_bytes, stats.kv_cached_bytes, stats.kv_share),
        joint_layers=None if info is None else _joint_layers(stats, info.num_layers),
    )


def _weights(stats: WeightStats) -> pb.WeightStatus:
    return pb.WeightStatus(
        own_bytes=stats.own_bytes,
        shared_bytes=stats.shared_bytes,
        saved_bytes=stats.saved_bytes,
        shared_with=stats.shared_with,
    )


def _joint_layers(stats: ModelStats, num_layers: int) -> pb.JointLayersStatus | None:
    joint = stats.joint_layers
    if joint is None:
        return None
    # Of a step that is under way layers are counted already.
    share = joint.num_layers / max(1, stats.num_steps * num_layers, joint.num_layers)
    return pb.JointLayersStatus(num_layers=joint.num_layers, num_rows=joint.num_rows, share=share)


def _kv_share(granted_bytes: int, cached_bytes: int, share: KvShareStats) -> pb.KvShareStatus:
    return pb.KvShareStatus(
        granted_bytes=granted_bytes,
        cached_bytes=cached_bytes,
        floor_bytes=share.floor_bytes,
        num_moves_in=share.num_moves_in,
        num_moves_out=share.num_moves_out,
        in_bytes=share.in_bytes,
        out_bytes=share.out_bytes,
        moves_per_s=share.moves_per_s,
    )


def _tell_standing(message: pb.ModelStatus, model: ModelStanding, now_s: float) -> None:
    message.state = model.state
    message.state_age_s = max(0.0, now_s - model.since_s)
    message.origin = model.origin
    message.pinned = model.is_pinned
    message.error = model.error
    message.aliases.extend(model.config.aliases)
    if model.progress is not None:
        message.progress.CopyFrom(progress_message(model.progress))


def progress_message(progress: LoadProgress) -> pb.ModelProgress:
    return pb.ModelProgress(
        phase=progress.phase,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
    )


def _piggyback(stats: PiggybackStats, share: KvShareStats | None) -> pb.PiggybackStatus:
    granted_bytes, cached_bytes = stats.host_kv_granted_bytes, stats.host_kv_cached_bytes
    return pb.PiggybackStatus(
        active=stats.active,
        host_state=stats.host_state,
        num_offloaded=stats.num_offloaded,
        kv_used_bytes=stats.host_kv_used_bytes,
        kv_total_bytes=stats.host_kv_total_bytes,
        num_rows_joined=stats.num_rows_joined,
        num_tokens=stats.num_tokens,
        rows_on_host=stats.rows_on_host_by_layer,
        rows_ready=stats.rows_ready_by_layer,
        num_swaps_out=stats.num_swaps_out,
        num_swaps_in=stats.num_swaps_in,
        kv_share=None if share is None else _kv_share(granted_bytes, cached_bytes, share),
    )


def _tiers(
    service: GenerationService,
    stats: Mapping[str, ModelStats],
    tokens_per_s: Mapping[ModelTier, float],
) -> list[pb.TierStatus]:
    metrics = service.metrics
    shares = metrics.attainment.shares()
    tokens = totals_by_tier(metrics.tokens, "kind", ("output",))
    refused = totals_by_tier(metrics.requests, "outcome", _REFUSED)
    messages = []
    for model in service.roster:
        if model.state in ("loading", "failed"):
            continue
        of_model = stats.get(model.name)
        for tier in service.tiers.tiers:
            name = model.name, tier.name
            message = _tier(model.name, tier)
            if of_model is not None:
                message.num_running = of_model.running.get(tier.name, 0)
                message.num_waiting = of_model.waiting.get(tier.name, 0)
            if service.wake_queue is not None:
                message.num_waiting += service.wake_queue.num_waiting(*name)
            if (*name, "ttft") in shares:
                message.ttft_attainment = shares[*name, "ttft"]
                message.tpot_attainment = shares[*name, "tpot"]
            message.output_tokens = tokens.get(name, 0)
            message.num_refused = refused.get(name, 0)
            message.output_tokens_per_s = tokens_per_s.get(name, 0.0)
            messages.append(message)
    return messages


def _tier(model: str, tier: TierConfig) -> pb.TierStatus:
    return pb.TierStatus(
        model=model,
        tier=tier.name,
        service_class=tier.service_class,
        ttft_ms=tier.ttft_ms,
        tpot_ms=tier.tpot_ms,
        percentile=tier.percentile,
    )


def _host(usage: HostUsage, stats: Mapping[str, ModelStats]) -> pb.HostStatus:
    piggybacks = [each.piggyback for each in stats.values() if each.piggyback is not None]
    return pb.HostStatus(
        num_cores=usage.num_cores,
        num_host_cores=max((each.num_host_cores for each in piggybacks), default=0),
        has_host_cores=any(each.has_host_cores for each in piggybacks),
        busy_share=usage.busy_share,
        memory_used_bytes=usage.memory_used_bytes,
        memory_total_bytes=usage.memory_total_bytes,
    )


def _requests(
    board: RequestBoard, stats: Mapping[str, ModelStats], now_s: float
) -> list[pb.RequestStatus]:
    prefilling = {
        sequence_id.rpartition("#")[0] for each in stats.values() for sequence_id in each.prefilling
    }
    return [
        pb.RequestStatus(
            request_id=each.request_id,
            model=each.model,
            tier=each.tier,
            tenant=each.tenant,
            phase=_phase(each, prefilling),
            age_s=max(0.0, now_s - each.arrival_s),
            prompt_tokens=each.num_prompt_tokens,
            output_tokens=each.num_output_tokens,
            piggybacked_tokens=each.num_piggybacked_tokens,
        )
        for each in board.oldest()
    ]


def _phase(request: RequestStanding, prefilling: Set[str]) -> str:
    """Of a request with several sequences, how far the first of them has come."""
    if request.num_output_tokens:
        return "decoding"
    is_running = request.engine_id and request.engine_id in prefilling
    return "prefill" if is_running else "waiting"


def _tenant(tenant: TenantStatus) -> pb.TenantStatus:
    return pb.TenantStatus(
        tenant=tenant.tenant,
        num_concurrent=tenant.num_concurrent,
        num_queued=tenant.num_queued,
        input_tokens_share=tenant.input_tokens_share,
        output_tokens_share=tenant.output_tokens_share,
        num_refused=tenant.num_refused,
    )


def _refusal(refused: RefusedRequest, now_s: float) -> pb.Refusal:
    return pb.Refusal(
        request_id=refused.request_id,
        model=refused.model,
        tier=refused.tier,
        tenant=refused.tenant,
        age_s=max(0.0, now_s - refused.at_s),
        reason=refused.reason,
        retry_after_s=refused.retry_after_s,
    )
