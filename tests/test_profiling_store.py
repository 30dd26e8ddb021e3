"""Kept profiles: found again for the same only, and whatever happens to their files."""

import logging
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from profiling_builders import MEASURED_ON, make_profile

from omniserve.cache_directory import cache_directory
from omniserve.engine.core import Engine
from omniserve.errors import CheckpointError
from omniserve.profiling.alone import alone
from omniserve.profiling.hardware import count_cores, cpu_name, measured_on, measured_on_base
from omniserve.profiling.kept import kept_profile
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.store import ProfileStore
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings, PiggybackSettings


def other(of: MeasuredOn, name: str) -> MeasuredOn:
    value = getattr(of, name)
    changed: dict[str, Any] = {name: value + 1 if isinstance(value, int) else value + "x"}
    return replace(of, **changed)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    store, profile = ProfileStore(tmp_path / "not" / "there"), make_profile()
    assert store.load(MEASURED_ON) is None
    path = store.save(profile)
    assert path is not None and path.parent == tmp_path / "not" / "there"
    assert store.load(MEASURED_ON) == profile
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", [field.name for field in fields(MeasuredOn)])
def test_what_was_measured_on_anything_else_is_not_used(tmp_path: Path, name: str) -> None:
    store = ProfileStore(tmp_path)
    store.save(make_profile())
    assert store.load(other(MEASURED_ON, name)) is None
    assert store.load(MEASURED_ON) is not None


@pytest.mark.parametrize("text", ["", "{", '{"model": "demo"}', "[]"])
def test_a_broken_file_is_ignored_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    store, profile = ProfileStore(tmp_path), make_profile()
    path = store.save(profile)
    assert path is not None
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert store.load(MEASURED_ON) is None
    assert events(caplog) == ["profile_ignored"]
    store.save(profile)
    assert store.load(MEASURED_ON) == profile


def test_values_that_no_step_can_take_are_refused(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    path = store.save(make_profile())
    assert path is not None
    path.write_text(path.read_text().replace('"overhead_s": 0.001', '"overhead_s": -0.001'))
    assert store.load(MEASURED_ON) is None


def test_a_file_under_anothers_name_is_ignored(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    path, another = store.save(make_profile()), other(MEASURED_ON, "cpu")
    wrong = store.path(another)
    assert path is not None and wrong is not None
    path.rename(wrong)
    assert store.load(another) is None


def test_what_cannot_be_kept_is_only_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for store in (ProfileStore(tmp_path / "file" / "profiles"), ProfileStore(None)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.save(make_profile()) is None
        assert events(caplog) == ["profile_not_kept"]
        assert store.load(MEASURED_ON) is None


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({"OMNISERVE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"OMNISERVE_CACHE_DIR": "a"}, Path.cwd() / "a"),
        ({"OMNISERVE_CACHE_DIR": "", "XDG_CACHE_HOME": "/b"}, Path("/b/omniserve")),
        ({}, Path.home() / ".cache" / "omniserve"),
        ({"XDG_CACHE_HOME": "no/home"}, None),
    ],
)
def test_the_environment_says_where(environment: dict[str, str], directory: Path | None) -> None:
    assert cache_directory(environment) == directory


class TestMeasuredOn:
    @pytest.fixture
    def model(self, tmp_path: Path) -> ModelSettings:
        (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
        return ModelSettings("m", str(tmp_path))

    def test_the_models_name_and_place_do_not_matter(
        self, model: ModelSettings, tmp_path: Path
    ) -> None:
        (tmp_path / "moved").mkdir()
        (tmp_path / "moved" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
        moved = replace(model, name="n", path=str(tmp_path / "moved"))
        assert measured_on(model, "cpu", 2) == measured_on(moved, "cpu", 2)

    def test_hardware_threads_and_model_do(self, model: ModelSettings, tmp_path: Path) -> None:
        on = measured_on(model, "cpu, 2 threads", 2)
        piggyback = PiggybackSettings(1 << 20, host_attention_threads=2)
        changed = [
            measured_on(model, "cpu, 1 threads", 2),
            measured_on(model, "cpu, 2 threads", 3),
            *(
                measured_on(each, "cpu, 2 threads", 2)
                for each in (
                    replace(model, dtype="float32"),
                    replace(model, block_size=16),
                    replace(model, max_step_tokens=64),
                    replace(model, max_running_requests=8),
                    replace(model, piggyback=piggyback),
                )
            ),
        ]
        (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
        changed.append(measured_on(model, "cpu, 2 threads", 2))
        assert len({each.key for each in (on, *changed)}) == len(changed) + 1

    def test_an_adapter_has_times_of_its_own_or_those_of_its_base(
        self, model: ModelSettings, tmp_path: Path
    ) -> None:
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
        adapter = replace(model, name="a", path=str(tmp_path / "adapter"), base=model.path)
        of_base, own = measured_on(model, "cpu", 2), measured_on(adapter, "cpu", 2)
        assert own != of_base and measured_on_base(adapter, own) == of_base
        assert measured_on_base(model, of_base) is None
        store, profile = ProfileStore(tmp_path / "profiles"), make_profile()
        assert kept_profile(adapter, own, store) is None
        store.save(replace(profile, measured_on=of_base))
        assert kept_profile(adapter, own, store) == replace(profile, measured_on=of_base)
        store.save(replace(profile, measured_on=own))
        assert kept_profile(adapter, own, store) == replace(profile, measured_on=own)
        assert kept_profile(model, of_base, store) == replace(profile, measured_on=of_base)

    def test_the_processor_has_a_name(self, tmp_path: Path) -> None:
        facts = tmp_path / "cpuinfo"
        facts.write_text("processor\t: 0\nmodel name\t: A Core\n\nprocessor\t: 1\n")
        assert cpu_name(facts) == "A Core"
        assert cpu_name(tmp_path / "none") == os.uname().machine

    def test_a_model_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"config\.json"):
            measured_on(ModelSettings("m", str(tmp_path)), "cpu", 1)

    def test_host_cores_are_those_of_the_hungriest_model(self, model: ModelSettings) -> None:
        few, many = (PiggybackSettings(1 << 20, host_attention_threads=num) for num in (1, 3))
        models = (replace(model, piggyback=few), replace(model, name="n", piggyback=many))
        (found,) = alone(EngineSettings(DeviceSettings("cpu"), models), "m").models
        assert found.piggyback is not None and found.piggyback.host_attention_threads == 3

    def test_cores_are_counted_before_the_engine_leaves_some(self, tiny_checkpoint: Path) -> None:
        before = count_cores()
        model = ModelSettings("m", str(tiny_checkpoint), "float32", device_kv_bytes=1 << 20)
        Engine(EngineSettings(DeviceSettings("cpu", threads=1), (model,))).close()
        assert count_cores() == before
