"""Results of reloads as protobuf messages."""

from omniserve.reload.forecast_messages import TierForecast, TierOutcome
from omniserve.reload.forecaster import NoForecast
from omniserve.reload.reloader import DryRun, Reload
from omniserve.v1 import omniserve_pb2 as pb


def reload_message(reload: Reload) -> pb.ReloadTiersResponse:
    return pb.ReloadTiersResponse(
        accepted=reload.is_accepted,
        changes=[
            pb.TierChange(
                tier=change.tier, key=change.key, before=change.before, after=change.after
            )
            for change in reload.changes
        ],
        needs_restart=reload.needs_restart,
        error=reload.error,
        notes=reload.notes,
    )


def dry_run_message(dry_run: DryRun) -> pb.ReloadTiersResponse:
    message = reload_message(dry_run.reload)
    if isinstance(dry_run.forecast, NoForecast):
        message.no_forecast = dry_run.forecast.reason
        return message
    forecast = dry_run.forecast.forecast
    message.forecast.extend(map(_tier_message, forecast.tiers))
    message.num_arrivals = forecast.num_arrivals
    message.arrivals_s = forecast.arrivals_s
    message.forecast_notes.extend(dry_run.forecast.notes)
    return message


def _tier_message(forecast: TierForecast) -> pb.TierForecast:
    return pb.TierForecast(
        tier=forecast.tier,
        before=None if forecast.before is None else _outcome_message(forecast.before),
        after=None if forecast.after is None else _outcome_message(forecast.after),
    )


def _outcome_message(outcome: TierOutcome) -> pb.TierOutcome:
    return pb.TierOutcome(
        num_requests=outcome.num_requests,
        num_refused=outcome.num_refused,
        ttft_attainment=outcome.ttft_attainment,
        tpot_attainment=outcome.tpot_attainment,
        tokens_per_s=outcome.tokens_per_s,
    )
