"""Torch's threads stay apart while another thread computes beside them."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from omniserve.devices.openmp_team import OpenMpTeam
from omniserve.devices.thread_pins import ThreadPins, team_threads

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core has nothing to part"
)


def affinities(threads: tuple[int, ...]) -> list[set[int]]:
    return [os.sched_getaffinity(thread) for thread in threads]


@needs_two_cores
def test_threads_are_apart_while_it_is_wanted_and_free_again_after() -> None:
    cores = os.sched_getaffinity(0)
    before = torch.get_num_threads()
    torch.set_num_threads(len(cores))
    try:
        pins = ThreadPins()
        pins.update(is_wanted=False)
        assert os.sched_getaffinity(0) == cores
        for _ in range(2):
            pins.update(is_wanted=True)
            threads = team_threads(OpenMpTeam())
            assert threads[0] == threading.get_native_id() and len(threads) == len(cores)
            assert sorted(affinities(threads), key=min) == [{core} for core in sorted(cores)]
            pins.update(is_wanted=True)
            pins.update(is_wanted=False)
            assert affinities(threads) == [cores] * len(cores)
    finally:
        torch.set_num_threads(before)


@needs_two_cores
def test_a_team_with_a_core_to_spare_is_left_alone() -> None:
    cores = os.sched_getaffinity(0)
    before = torch.get_num_threads()
    torch.set_num_threads(len(cores) - 1)
    try:
        pins = ThreadPins()
        pins.update(is_wanted=True)
        assert affinities(team_threads(OpenMpTeam())) == [cores] * (len(cores) - 1)
    finally:
        torch.set_num_threads(before)


@needs_two_cores
def test_a_process_that_is_held_to_some_cores_keeps_to_them() -> None:
    script = (
        "import os, torch; core = min(os.sched_getaffinity(0)); os.sched_setaffinity(0, {core})\n"
        "torch.set_num_threads(2)\n"
        "from omniserve.devices.thread_pins import ThreadPins\n"
        "pins = ThreadPins(); pins.update(is_wanted=True)\n"
        "assert os.sched_getaffinity(0) == {core}; pins.update(is_wanted=False)\n"
        "assert os.sched_getaffinity(0) == {core}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
