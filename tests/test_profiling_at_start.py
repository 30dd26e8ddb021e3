"""An engine that starts: it measures itself, leaves no trace of it, and serves whatever happens."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
import torch
from engine_builders import make_request, run_all
from profiling_builders import ALONE, TINY_EFFORT

from omniserve.engine.core import Engine
from omniserve.profiling import at_start, copies
from omniserve.profiling.at_start import StartClock, StepTimesAtStart
from omniserve.profiling.hardware import count_cores
from omniserve.profiling.messages import Effort
from omniserve.profiling.profile import Profile
from omniserve.profiling.store import ProfileStore
from omniserve.settings import (
    DeviceSettings,
    EngineSettings,
    ModelSettings,
    ModelStats,
    PiggybackSettings,
)
from scheduler.step_time import LinearStepTime

PATIENCE_S = 200.0


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> Effort:
    monkeypatch.setattr(at_start, "BRIEF", TINY_EFFORT)
    monkeypatch.setattr(at_start, "_MOST_S", PATIENCE_S)
    monkeypatch.setattr(copies, "_GIVE_UP_S", PATIENCE_S)
    return TINY_EFFORT


def settings_of(checkpoint: Path, threads: int = 1, **fields: object) -> EngineSettings:
    """One thread where that is enough: teams of several crawl on a machine under load."""
    model = ModelSettings(
        "tiny",
        str(checkpoint),
        "float32",
        device_kv_bytes=4 << 20,
        measures_step_time=True,
        **fields,  # type: ignore[arg-type]
    )
    return EngineSettings(DeviceSettings("cpu", threads), (model,))


class Start:
    """An engine that is warm, and what it is to find out."""

    def __init__(self, settings: EngineSettings, directory: Path) -> None:
        num_cores = count_cores()
        self.engine = Engine(settings)
        self.engine.warm_up()
        self.store = ProfileStore(directory)
        self.finder = StepTimesAtStart(self.engine, settings, self.store, num_cores)

    def find(
        self, *, within_s: float = PATIENCE_S, is_stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, LinearStepTime]:
        return self.finder.find(StartClock(time.monotonic() + within_s, is_stopping))

    def stats(self) -> ModelStats:
        (stats,) = self.engine.stats()
        return stats

    def require_as_new(self) -> None:
        """Nothing of what was measured is left."""
        assert not self.engine.has_unfinished
        self.engine.check_integrity()
        stats = self.stats()
        assert (stats.running, stats.waiting) == ({}, {})
        assert stats.kv_used_bytes == stats.num_steps == stats.num_preemptions == 0
        assert stats.num_cached_prompt_tokens == stats.step_ms == 0
        if stats.piggyback is not None:
            assert stats.piggyback.num_rows_joined == stats.piggyback.num_tokens == 0
            assert stats.piggyback.num_swaps_out == stats.piggyback.num_swaps_in == 0
            assert stats.piggyback.host_kv_used_bytes == 0
        prompt = list(range(40))
        for _ in range(2):
            done = run_all(self.engine, [make_request("r", prompt)])["r"]
            assert len(done.token_ids) == 16
        assert done.num_cached_tokens == 32, "prefixes are shared as the settings say"


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[Callable[[EngineSettings], Start]]:
    opened = []

    def start(settings: EngineSettings) -> Start:
        opened.append(Start(settings, tmp_path / "profiles"))
        return opened[-1]

    yield start
    for each in opened:
        each.engine.close()


Starts = Callable[[EngineSettings], Start]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without those of a machine that is busy with other things."""
    warnings = (each.getMessage() for each in caplog.records if each.levelname == "WARNING")
    return [warning for warning in warnings if warning != "step_times_doubtful"]


def kept(start: Start) -> list[Profile]:
    from omniserve.profiling.profile import load_profile

    directory = start.store._directory
    assert directory is not None
    return [load_profile(path) for path in directory.glob("*")]


def test_the_first_start_measures_and_the_next_one_remembers(
    starts: Starts, tiny_checkpoint: Path
) -> None:
    first = starts(settings_of(tiny_checkpoint))
    assert first.stats().control is None
    found = first.find()
    assert set(found) == {"tiny"}
    (profile,) = kept(first)
    assert profile.step_time == found["tiny"]
    assert profile.effort == TINY_EFFORT.name and profile.host is None
    assert first.stats().control is not None, "steps are held to what was found"
    first.require_as_new()

    def never() -> bool:
        raise AssertionError("a step was measured though the profile was kept")

    second = starts(settings_of(tiny_checkpoint))
    assert second.find(is_stopping=never) == found
    assert second.stats().control is not None


def test_another_number_of_threads_or_another_model_is_measured_anew(
    starts: Starts, tiny_checkpoint: Path
) -> None:
    first = starts(settings_of(tiny_checkpoint))
    first.find()
    starts(settings_of(tiny_checkpoint, block_size=16)).find()
    assert len(kept(first)) == 2


def test_steps_beside_the_host_are_measured_where_it_takes_cores(
    starts: Starts, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    # Whatever the rule would say: what is measured must not depend on it.
    piggyback = PiggybackSettings(64 << 20, when="auto", max_lane_rows=32)
    for number in range(3):
        if number:
            shutil.rmtree(tmp_path / "profiles")
        start = starts(settings_of(tiny_checkpoint, 2, piggyback=piggyback))
        threads: list[int] = []

        def look(threads: list[int] = threads) -> bool:
            threads.append(torch.get_num_threads())
            return False

        found = start.find(is_stopping=look)["tiny"]
        assert [num for num, _ in groupby(threads)] == [2, 1], "first all cores, then what is left"
        assert found.beside_host is not None
        # Where others took the cores as it had all of them, it is said to be no slower with them.
        if found.beside_host != found.alone:
            break
        start.engine.close()
    assert found.beside_host != found.alone
    (profile,) = kept(start)
    assert profile.host is not None
    assert profile.host.kv_bytes_per_s > 0 and profile.host.copy_bytes_per_s > 0
    assert profile.host.speed is not None
    # Only steps that nobody disturbed are judged, and there may be none.
    assert all(step.shape.num_lane_rows > 0 for step in profile.judged.with_lanes)
    start.require_as_new()


def test_what_is_given_is_not_measured(starts: Starts, tiny_checkpoint: Path) -> None:
    given = LinearStepTime(ALONE)
    start = starts(settings_of(tiny_checkpoint, step_time=given))
    assert start.find(within_s=0.0) == {"tiny": given}
    assert not kept(start)


def test_an_engine_that_is_to_stop_stops_measuring(
    starts: Starts, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start, asked = starts(settings_of(tiny_checkpoint)), iter([False] * 5)
    assert start.find(is_stopping=lambda: next(asked, True)) == {}
    assert warnings_of(caplog) == ["step_times_unknown"]
    assert not kept(start)
    start.require_as_new()


@pytest.mark.parametrize("within_s", [0.0, 9.0])
def test_without_time_there_is_no_measuring(
    starts: Starts, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture, within_s: float
) -> None:
    start = starts(settings_of(tiny_checkpoint))
    assert start.find(within_s=within_s) == {}
    assert warnings_of(caplog) == ["step_times_unknown"]


def test_what_was_measured_until_the_time_was_over_is_used_but_not_kept(
    starts: Starts,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(at_start, "_MOST_S", 1.0)
    monkeypatch.setattr(at_start, "_LEAST_S", 0.5)
    piggyback = PiggybackSettings(64 << 20, when="auto", max_lane_rows=32)
    start = starts(settings_of(tiny_checkpoint, 2, piggyback=piggyback))
    found = start.find()
    assert warnings_of(caplog)[0] == "measuring_cut_short"
    # On a machine under load a second may be too little for any fit.
    assert set(found) == {"tiny"} or warnings_of(caplog)[1:] == ["step_times_unknown"]
    assert not kept(start)
    start.require_as_new()


@pytest.mark.parametrize("error", [RuntimeError("a fault"), TimeoutError("no step"), MemoryError()])
def test_whatever_goes_wrong_requests_are_served(
    starts: Starts,
    tiny_checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    start = starts(settings_of(tiny_checkpoint))
    asked = iter(range(5))

    def look() -> bool:
        if next(asked, None) is None:
            raise error
        return False

    with caplog.at_level(logging.WARNING):
        assert start.find(is_stopping=look) == {}
    assert warnings_of(caplog)[-1] == "step_times_unknown"
    start.require_as_new()
