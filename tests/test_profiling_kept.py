"""Step times of a model that comes while others run."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import make_model_settings
from profiling_builders import make_profile

from omniserve.profiling.alone import alone
from omniserve.profiling.hardware import measured_on
from omniserve.profiling.kept import with_kept_step_time
from omniserve.profiling.store import ProfileStore
from omniserve.settings import (
    ROWS_BESIDE_LS_ON_CPU,
    TOKENS_BESIDE_LS,
    DeviceSettings,
    EngineSettings,
    ModelSettings,
    PiggybackSettings,
)

DEVICE, NUM_CORES = "cpu, 2 threads", 2


def wanted(path: Path) -> ModelSettings:
    """As a configuration asks for it whose steps are to be limited by time alone."""
    settings = make_model_settings(path, best_effort_tokens_beside_ls=512, max_step_tokens=512)
    piggyback = PiggybackSettings(1 << 20, max_lane_rows=64, max_lane_rows_beside_ls=64)
    return replace(settings, measures_step_time=True, piggyback=piggyback)


def completed(model: ModelSettings, store: ProfileStore) -> ModelSettings:
    settings = EngineSettings(DeviceSettings(kind="cpu"), (model,))
    return with_kept_step_time(settings, DEVICE, store, NUM_CORES)


def test_without_a_measurement_budgets_take_the_place_of_time(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="omniserve")
    model = completed(wanted(tiny_checkpoint), ProfileStore(tmp_path))
    assert model.step_time is None
    assert model.best_effort_tokens_beside_ls == TOKENS_BESIDE_LS
    assert model.piggyback is not None
    assert model.piggyback.max_lane_rows_beside_ls == ROWS_BESIDE_LS_ON_CPU
    assert [record.getMessage() for record in caplog.records] == ["step_times_unknown"]


def test_what_was_measured_before_is_taken(tiny_checkpoint: Path, tmp_path: Path) -> None:
    store, model = ProfileStore(tmp_path), wanted(tiny_checkpoint)
    settings = EngineSettings(DeviceSettings(kind="cpu"), (model,))
    (as_measured,) = alone(settings, model.name).models
    profile = make_profile(measured_on(as_measured, DEVICE, NUM_CORES))
    assert store.save(profile) is not None
    assert completed(model, store) == replace(model, step_time=profile.step_time)


def test_one_that_asks_for_none_stays_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = replace(wanted(tiny_checkpoint), measures_step_time=False)
    assert completed(model, ProfileStore(tmp_path)) is model
