"""Ranges of addresses that have pages in turn, against a driver with strict books."""

import gc
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_driver_builders import (
    PAGE_BYTES,
    BookDriver,
    HostDriver,
    LateDevice,
    PassedMark,
    host_bytes,
)

from omniserve.devices.device_pages import DevicePages
from omniserve.devices.memory_driver import OutOfDeviceMemory
from omniserve.devices.virtual_memory import VirtualMemory

NUM_RANGES = 3
RANGE_PAGES = 6
NUM_PAGES = 8
"""Fewer than the ranges have addresses for."""

Kind = Literal["reserve", "give_back", "write", "read", "run", "fail"]


@dataclass(frozen=True)
class Move:
    kind: Kind
    range_index: int
    first: int
    count: int


moves = st.builds(
    Move,
    st.sampled_from(("reserve", "reserve", "give_back", "write", "read", "run", "fail")),
    st.integers(0, NUM_RANGES - 1),
    st.integers(0, RANGE_PAGES - 1),
    st.integers(1, RANGE_PAGES),
)


@dataclass
class Model:
    """A range, what is in use of it, and what was written there."""

    memory: VirtualMemory
    in_use: set[int] = field(default_factory=set)
    values: dict[int, int] = field(default_factory=dict)


def make_memory(
    pages: DevicePages, device: LateDevice, num_pages: int = RANGE_PAGES
) -> VirtualMemory:
    return VirtualMemory(pages, num_pages * PAGE_BYTES, device.mark, host_bytes)


def reserve(memory: VirtualMemory, first: int, stop: int) -> None:
    memory.reserve(first * PAGE_BYTES, stop * PAGE_BYTES)


def give_back(memory: VirtualMemory, first: int, stop: int) -> None:
    memory.give_back(first * PAGE_BYTES, stop * PAGE_BYTES)


def address_of(memory: VirtualMemory, page: int) -> int:
    return memory.address + page * PAGE_BYTES


class World:
    """Several ranges on one device; moves are checked against plain sets."""

    def __init__(self) -> None:
        self.driver = BookDriver()
        self.device = LateDevice(self.driver)
        self.pages = DevicePages(self.driver)
        self.pages.create(NUM_PAGES)
        self.models = [Model(make_memory(self.pages, self.device)) for _ in range(NUM_RANGES)]
        self._num_written = 0

    def make(self, move: Move) -> None:
        model = self.models[move.range_index]
        stop = min(RANGE_PAGES, move.first + move.count)
        span = set(range(move.first, stop))
        if move.kind in ("reserve", "fail"):
            self._reserve(model, move, span, stop)
        elif move.kind == "give_back":
            give_back(model.memory, move.first, stop)
            model.in_use -= span
            for page in span:
                model.values.pop(page, None)
        elif move.kind == "run":
            self.device.run(move.count)
        else:
            for page in span & model.in_use:
                self._use(model, page, is_write=move.kind == "write")
        self.check()

    def _reserve(self, model: Model, move: Move, span: set[int], stop: int) -> None:
        num_free = NUM_PAGES - sum(len(each.in_use) for each in self.models)
        wanted = span - model.in_use
        self.driver.fails_at = move.count if move.kind == "fail" else None
        try:
            reserve(model.memory, move.first, stop)
        except OutOfDeviceMemory:
            assert move.kind == "fail" or len(wanted) > num_free
        else:
            assert len(wanted) <= num_free
            model.in_use |= span
        self.driver.fails_at = None

    def _use(self, model: Model, page: int, *, is_write: bool) -> None:
        address = address_of(model.memory, page)
        if is_write:
            self._num_written += 1
            model.values[page] = self._num_written
            self.device.write(address, self._num_written)
        elif page in model.values:
            self.device.read(address, model.values[page])

    def check(self) -> None:
        in_use = [address_of(model.memory, page) for model in self.models for page in model.in_use]
        assert self.pages.num_free == NUM_PAGES - len(in_use)
        assert set(in_use) <= self.driver.accessible
        handles = {self.driver.mappings[address] for address in in_use}
        assert len(handles) == len(in_use), "two have one page"
        assert len(self.driver.handles) == NUM_PAGES


@settings(max_examples=200, deadline=None)
@given(st.lists(moves, max_size=40))
def test_any_sequence_of_moves_is_right_and_leaves_nothing(sequence: list[Move]) -> None:
    """Also where the driver fails amid it, and while the device is behind."""
    world = World()
    for move in sequence:
        world.make(move)
    # Everything is read once more.
    for model in world.models:
        for page in model.values:
            world._use(model, page, is_write=False)
    while world.models:
        memory = world.models.pop().memory
        memory.close()
        memory.close()
        del memory
    del model
    world.device.run()
    assert not world.driver.mappings and not world.driver.reservations
    driver = world.driver
    # Nothing refers to itself, so this is the end of it.
    del world
    assert driver.is_empty


@pytest.fixture
def world() -> World:
    return World()


def test_a_page_that_nobody_took_comes_back_without_a_call(world: World) -> None:
    one = world.models[0].memory
    reserve(one, 0, 3)
    give_back(one, 0, 3)
    world.driver.calls.clear()
    reserve(one, 0, 3)
    assert world.driver.calls == []


def test_memory_goes_to_another_range_without_waiting_for_the_device(world: World) -> None:
    """What is launched for the one comes before what is launched for the other."""
    one, two = world.models[0].memory, world.models[1].memory
    reserve(one, 0, 6)
    reserve(two, 0, 2)
    for page in range(6):
        world.device.write(address_of(one, page), page)
        world.device.read(address_of(one, page), page)
    give_back(one, 0, 6)
    reserve(two, 2, 6)
    world.device.write(address_of(two, 5), 50)
    assert world.device.num_done == 0
    assert all(not mark.num_waits for mark in world.device.marks)
    assert "unmap" not in world.driver.calls, "the device may be anywhere"
    world.device.read(address_of(two, 5), 50)
    world.device.run()
    world.driver.calls.clear()
    give_back(two, 0, 6)
    assert world.driver.calls == ["unmap"] * 4, "now it has passed"


def test_addresses_that_are_left_are_waited_for_where_they_are_wanted_again(world: World) -> None:
    one, two = world.models[0].memory, world.models[1].memory
    reserve(one, 0, 6)
    world.device.write(address_of(one, 0), 1)
    give_back(one, 0, 6)
    reserve(two, 0, 6)
    give_back(two, 0, 6)
    assert world.device.num_done == 0
    reserve(one, 0, 6)
    world.device.run()
    assert world.driver.num_backed == NUM_PAGES


def test_neighbouring_pages_get_access_at_once(world: World) -> None:
    one = world.models[0].memory
    reserve(one, 2, 3)
    world.driver.calls.clear()
    reserve(one, 0, 6)
    assert world.driver.calls.count("map") == 5
    assert world.driver.calls.count("access") == 2


def test_what_is_kept_is_beside_what_is_shared(world: World) -> None:
    one, two = world.models[0].memory, world.models[1].memory
    one.keep(5 * PAGE_BYTES, 6 * PAGE_BYTES)
    assert world.pages.num_free == NUM_PAGES
    give_back(one, 0, 6)
    assert address_of(one, 5) in world.driver.accessible
    reserve(two, 0, 6)
    reserve(one, 0, 2)
    assert world.pages.num_free == 0
    one.close()
    assert len(world.driver.handles) == NUM_PAGES


def test_memory_that_the_device_has_not_is_refused_and_nothing_is_left() -> None:
    driver = BookDriver(num_pages=4)
    pages = DevicePages(driver)
    with pytest.raises(OutOfDeviceMemory):
        pages.create(5)
    assert not driver.handles
    pages.create(4)
    memory = make_memory(pages, LateDevice(driver))
    with pytest.raises(OutOfDeviceMemory):
        memory.keep(0, PAGE_BYTES)
    with pytest.raises(OutOfDeviceMemory):
        reserve(memory, 0, 5)
    assert pages.num_free == 4 and not driver.accessible


def test_a_range_that_nobody_closed_gives_back_what_it_has(world: World) -> None:
    memory = make_memory(world.pages, world.device)
    reserve(memory, 0, 4)
    memory.keep(5 * PAGE_BYTES, 6 * PAGE_BYTES)
    world.device.write(address_of(memory, 0), 1)
    num_reserved = len(world.driver.reservations)
    del memory
    gc.collect()
    reserve(world.models[0].memory, 0, 6)
    reserve(world.models[1].memory, 0, 2)
    assert len(world.driver.reservations) == num_reserved - 1
    assert len(world.driver.handles) == NUM_PAGES
    world.device.run()


def test_a_tensor_is_the_memory_and_keeps_it() -> None:
    driver = HostDriver()
    pages = DevicePages(driver)
    pages.create(4)
    memory = VirtualMemory(pages, 5 * PAGE_BYTES - 100, PassedMark, host_bytes)
    cache = memory.tensor((2, PAGE_BYTES), torch.bfloat16)
    assert (cache.data_ptr(), cache.shape) == (memory.address, (2, PAGE_BYTES))
    assert memory.num_bytes == 5 * PAGE_BYTES
    assert pages.num_free == 4 and len(driver.handles) == 4, "nothing is taken for it"
    reserve(memory, 2, 4)
    cache[1] = 3.0
    give_back(memory, 2, 4)
    reserve(memory, 2, 4)
    assert (cache[1] == 3.0).all(), "nobody took it"
    address = memory.address
    del memory
    gc.collect()
    assert address in driver.reservations
    assert (cache[1] == 3.0).all()
    del cache
    gc.collect()
    pages.create(0)
    assert not driver.reservations and not driver.mappings
