"""How far the host runs ahead of a device, tried with a device that is told what it has done."""

import time
from dataclasses import dataclass, field

import pytest
import torch

from omniserve.devices.layer_queue import LayerQueue, layer_queue_for


@dataclass
class SlowDevice:
    """Is done with one layer more each time somebody sleeps."""

    num_queued: int = 0
    num_done: int = 0
    most_ahead: int = 0
    asked: list[int] = field(default_factory=list)

    def mark(self) -> "Mark":
        self.num_queued += 1
        self.most_ahead = max(self.most_ahead, self.num_queued - self.num_done)
        return Mark(self, self.num_queued)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.num_done += 1


@dataclass
class Mark:
    device: SlowDevice
    place: int

    def query(self) -> bool:
        self.device.asked.append(self.place)
        return self.device.num_done >= self.place


def test_one_layer_is_queued_behind_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SlowDevice()
    monkeypatch.setattr(time, "sleep", device.sleep)
    queue = LayerQueue(device.mark)
    for _ in range(10):
        queue.note()
        queue.await_room()
        # One may still run: the device has something to do while the host decides.
        assert device.num_queued - device.num_done <= 1
    assert device.most_ahead == 2
    assert device.asked == sorted(device.asked), "marks are passed in order"


def test_a_device_that_keeps_up_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SlowDevice(num_done=1000)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    queue = LayerQueue(device.mark)
    for _ in range(5):
        queue.note()
        queue.await_room()


def test_a_cpu_device_has_no_queue() -> None:
    assert layer_queue_for(torch.device("cpu")) is None
