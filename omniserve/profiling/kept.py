"""Step times of a model that comes while others run: nothing is measured then, it would disturb
both."""

import logging
from dataclasses import replace

from omniserve.logs import get_logger, log_event
from omniserve.profiling.alone import alone
from omniserve.profiling.hardware import measured_on, measured_on_base
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.profile import Profile
from omniserve.profiling.store import ProfileStore
from omniserve.settings import (
    ROWS_BESIDE_LS_ON_CPU,
    TOKENS_BESIDE_LS,
    EngineSettings,
    ModelSettings,
)

_LOG = get_logger(__name__)


def with_kept_step_time(
    settings: EngineSettings, device: str, store: ProfileStore, num_cores: int
) -> ModelSettings:
    """The last model of `settings`, the others being those beside it: with the step times that
    were measured before, where it asks for any, or else with token budgets.

    `device` is in the words of the engine. Raises CheckpointError where config.json cannot be read.
    """
    model = settings.models[-1]
    if model.step_time is not None or not model.measures_step_time:
        return model
    (as_measured,) = alone(settings, model.name).models
    of = measured_on(as_measured, device, num_cores)
    kept = kept_profile(model, of, store)
    if kept is not None and kept.measured_on is not None:
        path = str(store.path(kept.measured_on))
        log_event(_LOG, "step_times_kept", model=model.name, path=path)
        return replace(model, step_time=kept.step_time)
    log_event(
        _LOG,
        "step_times_unknown",
        level=logging.WARNING,
        model=model.name,
        reason="nobody has measured it on this machine, and models that run are not disturbed",
        effect="its steps are limited by token budgets alone",
        hint="`omniserve profile` measures it, for the next time that it is loaded",
    )
    return _with_budgets(model)


def kept_profile(model: ModelSettings, of: MeasuredOn, store: ProfileStore) -> Profile | None:
    """The model's own, or, of an adapter that was never measured, that of its base."""
    kept = store.load(of)
    of_base = measured_on_base(model, of)
    return store.load(of_base) if kept is None and of_base is not None else kept


def _with_budgets(model: ModelSettings) -> ModelSettings:
    """Token budgets where time was to be the only one."""
    if model.best_effort_tokens_beside_ls >= model.max_step_tokens:
        tokens = min(model.best_effort_tokens_beside_ls, TOKENS_BESIDE_LS)
        model = replace(model, best_effort_tokens_beside_ls=tokens)
    limits = model.piggyback
    if limits is not None and limits.max_lane_rows_beside_ls >= limits.max_lane_rows:
        rows = min(limits.max_lane_rows, ROWS_BESIDE_LS_ON_CPU)
        model = replace(model, piggyback=replace(limits, max_lane_rows_beside_ls=rows))
    return model
