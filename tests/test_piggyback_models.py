"""A model more on a host process that serves others, and away again."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from piggyback_builders import running_fleet, settings_of, write_checkpoints

from omniserve.devices.device import Device, open_device
from omniserve.engine.build import build_model
from omniserve.engine.kv_sharing import KvBudgets
from omniserve.errors import ConfigError
from omniserve.models.weight_store import WeightStore
from omniserve.piggyback.build import HostedModel, add_piggyback
from omniserve.piggyback.core_split import CoreSplit
from omniserve.piggyback.host_link import HostLink
from omniserve.piggyback.known_speeds import KnownSpeeds
from omniserve.piggyback.runtime import Piggyback
from omniserve.settings import DeviceSettings

ARCH = "qwen3"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("models"), [ARCH])


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device(DeviceSettings(kind="cpu", threads=1))


@pytest.fixture(scope="module")
def link(checkpoints: dict[str, Path]) -> Iterator[HostLink]:
    """Of an engine with one model that piggybacks, at work."""
    with running_fleet(checkpoints, ["forced"]) as fleet:
        fleet.engine.warm_up()
        link = fleet.engine._host
        assert link is not None
        yield link


def _hosted(
    checkpoints: dict[str, Path], device: Device, host_kv_bytes: int | None = None
) -> HostedModel:
    settings = settings_of(ARCH, checkpoints[ARCH], "forced", "float32")
    if host_kv_bytes is not None:
        assert settings.piggyback is not None
        piggyback = replace(settings.piggyback, host_kv_bytes=host_kv_bytes)
        settings = replace(settings, piggyback=piggyback)
    hosted = build_model(
        replace(settings, name="another"), device, WeightStore(), KvBudgets(), lambda *_: None
    ).hosted
    assert hosted is not None
    return hosted


def test_a_model_joins_the_process_and_leaves_it(
    link: HostLink, checkpoints: dict[str, Path], device: Device
) -> None:
    pid, before = link.host.pid, link.host.models
    for _ in range(2):
        hosted = _hosted(checkpoints, device)
        piggyback = add_piggyback(hosted, link, device)
        assert len(link.host.models) == len(before) + 1
        index = (set(link.host.models) - set(before)).pop()
        while not link.is_model_ready(index):
            link.collect()
        piggyback.poll()
        assert hosted.scheduler.lanes_open
        assert piggyback.is_quiet
        piggyback.leave()
        assert link.host.models == before
        take_apart_in_a_thread(piggyback)
        assert not hosted.host.model.pool.is_open
    assert link.host.pid == pid


def test_memory_of_a_model_that_has_left_is_given_back_in_pieces_by_another_thread(
    link: HostLink, checkpoints: dict[str, Path], device: Device
) -> None:
    hosted = _hosted(checkpoints, device, host_kv_bytes=16 << 20)
    pool = hosted.host.pool
    piggyback = add_piggyback(hosted, link, device)
    pool.words[:] = 7
    taken_bytes = pool.resident_bytes
    assert taken_bytes >= 8 << 20
    with os.fdopen(os.dup(pool.fd), "rb") as still_there:
        piggyback.leave()
        assert (pool.resident_bytes, hosted.host.model.pool.is_open) == (taken_bytes, True)
        # The copies' thread, then at least two pieces.
        assert take_apart_in_a_thread(piggyback) > 2
        # Also where somebody has it mapped yet, as a process that is still compiling does.
        assert os.fstat(still_there.fileno()).st_blocks == 0
    assert not hosted.host.model.pool.is_open


def take_apart_in_a_thread(piggyback: Piggyback) -> int:
    """In how many pieces it was done."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: sum(1 for _ in piggyback.take_apart())).result()


def test_one_that_has_tasks_on_the_host_does_not_leave(
    link: HostLink, checkpoints: dict[str, Path], device: Device
) -> None:
    hosted = _hosted(checkpoints, device)
    before = link.host.models
    piggyback = add_piggyback(hosted, link, device)
    index = (set(link.host.models) - set(before)).pop()
    link.host.set_block_table(index, 0, hosted.host.pool.allocate(1))
    # Not published before the process has the model, and that is known by `collect` alone.
    link.host.submit(index, 0, 0, 1)
    with pytest.raises(ValueError, match="still hold something on the host"):
        piggyback.leave()
    link.host.release(index, [0])
    while not piggyback.is_quiet:
        link.collect()
    piggyback.leave()
    take_apart_in_a_thread(piggyback)
    assert link.host.models == before


def test_more_lanes_than_the_process_has_are_refused(
    link: HostLink, checkpoints: dict[str, Path], device: Device
) -> None:
    hosted = _hosted(checkpoints, device)
    greedy = replace(hosted.settings, max_offloaded_requests=link.num_lanes + 1)
    before = link.host.models
    with pytest.raises(ConfigError, match=r"models\.another\.piggyback\.max_offloaded_requests"):
        add_piggyback(replace(hosted, settings=greedy), link, device)
    assert link.host.models == before
    hosted.host.pool.close()


def test_speeds_are_measured_in_pieces_and_once(
    link: HostLink, checkpoints: dict[str, Path], device: Device
) -> None:
    hosted = _hosted(checkpoints, device)
    assert link.core_split is not None
    link.core_split.unite()
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    split, speeds = CoreSplit(link.cores), KnownSpeeds()
    assert split.costs_device_threads
    measurement = speeds.begin(hosted.model, split, 1)
    num_pieces = 0
    while measurement.result is None:
        assert speeds.of(hosted.model) is None
        was_split = split.is_split
        measurement.advance()
        assert split.is_split == was_split
        num_pieces += 1
    assert num_pieces > 4 * hosted.model.num_layers
    speed = speeds.of(hosted.model)
    assert speed is not None
    assert speed == measurement.result
    assert min(speed.device_alone.step_s, speed.host_kv_bytes_per_s) > 0
    # What is the machine's is not measured again.
    again = speeds.begin(hosted.model, split, 1).finish()
    assert again.host_kv_bytes_per_s == speed.host_kv_bytes_per_s
    split.unite()
    torch.set_num_threads(threads)
    link.core_split.split()
    hosted.host.pool.close()
