"""Profiles on disk."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from simulate_builders import make_profile

from omniserve.errors import ConfigError
from omniserve.machine import Machine
from omniserve.profiling.profile import FrontLatency, Profile, load_profile, save_profile
from scheduler.offload_rule import DeviceSpeed, HostSpeed
from scheduler.step_time import LinearStepTime, StepCosts


def full_profile() -> Profile:
    """With a value in every field."""
    profile = make_profile()
    assert profile.host is not None
    speed = HostSpeed(DeviceSpeed(1.0, 2.0, 3.0), DeviceSpeed(4.0, 5.0, 6.0), 7.0)
    return replace(
        profile,
        step_time=LinearStepTime(profile.step_time.alone, StepCosts(0.5, ((1, 1.0),))),
        host=replace(profile.host, speed=speed),
        front=FrontLatency(0.1, 0.2, 0.3, 0.4),
        step_ratio_quantiles=(0.9, 1.0, 1.5),
        machine=Machine(4, 1 << 30, 1 << 29),
    )


def test_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(full_profile(), path)
    assert load_profile(path) == full_profile()
    assert [each.name for each in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"num_layers": 8', '"num_layers": "many"', "num_layers"),
        ('"num_layers": 8,', "", "num_layers"),
        ('"num_layers": 8', '"num_layers": 0', "num_layers: 0 is not allowed"),
        ('"kv_bytes_per_s": 200000000.0', '"kv_bytes_per_s": 0.0', "host.kv_bytes_per_s: 0"),
        ('"task_overhead_s": 2e-6', '"task_overhead_s": -2e-6', "host.task_overhead_s: -2e-06"),
        ("[\n          101,", "[\n          1,", "dense_ladder"),
        ("{", "(", "not a profile"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "profile.json"
    save_profile(make_profile(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.json: cannot be read"):
        load_profile(tmp_path / "none.json")


def test_what_cannot_be_a_profile_is_refused_without_being_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, (16 << 20) + 1)
    for path, said in (
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "pipe", "cannot be read: Not a regular file"),
        (Path("/dev/zero"), "cannot be read: Not a regular file"),
        (large, "not a profile: larger than 16 MiB"),
    ):
        with pytest.raises(ConfigError, match=f"{path}: {said}"):
            load_profile(path)


def test_deep_nesting_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"x": ' + "[" * 100_000)
    with pytest.raises(ConfigError, match="deep.json: not a profile: nested too deep"):
        load_profile(path)
