"""Models that join the host attention process and leave it while it runs."""

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from host_attention_builders import Request, collect, make_model, running, until
from host_pool_builders import make_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpu_attn.host.attention import HostAttention
from cpu_attn.host.descriptor import MAX_MODELS, HostStatus
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel

_NUM_SLOTS = 4


@pytest.fixture(scope="module")
def pool() -> Iterator[HostKvPool]:
    pool = make_pool(num_blocks=512, head_dim=64)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def host() -> Iterator[HostAttention]:
    """Without models, as each test leaves it."""
    with running([], num_slots=_NUM_SLOTS, max_restarts=1000, max_attempts=1000) as host:
        yield host


@pytest.fixture
def model(pool: HostKvPool) -> HostModel:
    return make_model(pool, max_context_len=128)


def _wait_until_ready(host: HostAttention, index: int) -> None:
    def is_ready() -> bool:
        assert not len(host.collect())
        return host.is_model_ready(index)

    until(is_ready)


def _make_request(host: HostAttention, index: int, model: HostModel, pool: HostKvPool) -> Request:
    rng = np.random.default_rng(index)
    request = Request(host, pool, model, index, 1)
    request.prefill(0, 30, rng)
    request.write(0, 1, rng)
    return request


def test_tasks_wait_for_a_model_that_joins_and_the_index_is_free_when_it_left(
    host: HostAttention, model: HostModel, pool: HostKvPool
) -> None:
    assert host.state == "ready"
    with pytest.raises(ValueError, match=r"model 0: \[\] are there"):
        host.submit(0, 0, 0, 1)
    for _ in range(2):
        index = host.add_model(model)
        assert index == 0
        request = _make_request(host, index, model, pool)
        host.submit(index, 1, 0, 31)
        with pytest.raises(ValueError, match="model 0 has tasks in flight in 1 slots"):
            host.remove_model(index)
        assert collect(host, 1) == [(0, 1, HostStatus.OK)]
        request.check(0, 1)
        assert host.is_model_ready(index)
        host.remove_model(index)
        pool.free(request.block_ids)
    assert host.counters.num_restarts == 0


def test_a_model_that_leaves_before_it_was_ready(
    host: HostAttention, model: HostModel, pool: HostKvPool
) -> None:
    index = host.add_model(model)
    request = _make_request(host, index, model, pool)
    host.submit(index, 1, 0, 31)
    host.release(index, 1)
    assert not host.in_flight(index).any() or host.is_model_ready(index)
    until(lambda: not len(host.collect()) and not host.in_flight(index).any())
    host.remove_model(index)
    again = host.add_model(model)
    assert again == index
    # The answer for the first one says nothing of the second.
    _wait_until_ready(host, again)
    host.remove_model(again)
    pool.free(request.block_ids)


def test_there_is_an_end_to_models(host: HostAttention, model: HostModel) -> None:
    for _ in range(MAX_MODELS):
        host.add_model(model)
    with pytest.raises(ValueError, match=f"{MAX_MODELS} are there already"):
        host.add_model(model)
    for index in host.models:
        host.remove_model(index)
    assert host.models == []


def _holdings(pid: int) -> tuple[int, int]:
    """Descriptors, and mappings of memory that two processes share."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), maps.count("memfd:omniserve")


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_memory_and_descriptors_come_back_in_both_processes(host: HostAttention) -> None:
    pids = (os.getpid(), host.pid)

    def cycle(pause: bool) -> None:
        # Each takes a megabyte of its pool, and slots.
        own = make_pool(num_blocks=64, head_dim=64)
        model = make_model(own, max_context_len=128)
        index = host.add_model(model)
        if pause:
            request = _make_request(host, index, model, own)
            own.copy_in(own.allocate(40), np.ones((2, 40, 2, 2, 16, 64), dtype=np.float32))
            host.submit(index, 1, 0, 31)
            assert collect(host, 1) == [(index, 1, HostStatus.OK)]
            request.check(0, 1)
            del request
        host.remove_model(index)
        own.close()

    for _ in range(3):
        cycle(pause=True)
    gc.collect()
    assert host.pid is not None
    before = [_holdings(pid) for pid in pids if pid is not None]
    resident = [_resident_kib(pid) for pid in pids if pid is not None]
    for i in range(60):
        cycle(pause=i % 2 == 0)
    gc.collect()

    def all_came_back() -> bool:
        assert not len(host.collect())
        now = [_holdings(pid) for pid in pids if pid is not None]
        # The child may have let go of one more by now than when it was first looked at.
        return all(
            had <= before_it
            for each, then in zip(now, before, strict=True)
            for had, before_it in zip(each, then, strict=True)
        )

    until(all_came_back)
    for was, pid in zip(resident, pids, strict=True):
        assert pid is not None
        # 60 models with a megabyte each came and went.
        assert _resident_kib(pid) - was < 8 << 10


def test_others_go_on_while_models_come_and_go(
    host: HostAttention, model: HostModel, pool: HostKvPool
) -> None:
    index = host.add_model(model)
    request = _make_request(host, index, model, pool)
    pid = host.pid
    _wait_until_ready(host, index)
    for _ in range(20):
        other = host.add_model(model)
        host.submit(index, 1, 0, 31)
        assert collect(host, 1) == [(index, 1, HostStatus.OK)]
        request.check(0, 1)
        host.remove_model(other)
    assert host.pid == pid
    host.remove_model(index)
    pool.free(request.block_ids)


def test_a_model_that_cannot_be_served_harms_no_other(
    host: HostAttention, model: HostModel, pool: HostKvPool
) -> None:
    good = host.add_model(model)
    wrong = replace(model, pool=replace(model.pool, num_blocks=pool.num_blocks - 1))
    bad = host.add_model(wrong)
    requests = [_make_request(host, good, model, pool), _make_request(host, bad, model, pool)]
    host.submit(good, 1, 0, 31)
    host.submit(bad, 1, 0, 31)
    assert collect(host, 2) == [(good, 1, HostStatus.OK), (bad, 1, HostStatus.CRASHED)]
    assert not host.is_model_ready(bad)
    with pytest.raises(HostAttentionDown, match=f"model {bad}: ValueError: num_bytes"):
        host.submit(bad, 1, 0, 31)
    requests[0].check(0, 1)
    for index, request in zip((good, bad), requests, strict=True):
        host.remove_model(index)
        pool.free(request.block_ids)


def test_a_model_that_joins_during_a_restart_is_there_after_it(
    host: HostAttention, model: HostModel, pool: HostKvPool
) -> None:
    first = host.add_model(model)
    gone = host.add_model(model)
    _wait_until_ready(host, first)
    pid = host.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: host.supervise() != "ready")
    assert not host.is_model_ready(first)
    host.remove_model(gone)
    second = host.add_model(make_model(pool, num_heads=2, max_context_len=64))
    requests = [
        _make_request(host, index, host._models[index].model, pool) for index in (first, second)
    ]
    for index in (first, second):
        host.submit(index, 1, 0, 31)
    until(lambda: host.supervise() in ("starting", "ready"))
    third = host.add_model(model)
    rows = collect(host, 2)
    assert rows == [(first, 1, HostStatus.OK), (second, 1, HostStatus.OK)]
    _wait_until_ready(host, third)
    for request in requests:
        request.check(0, 1)
        pool.free(request.block_ids)
    for index in host.models:
        host.remove_model(index)


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "submit", "submit", "collect", "release"]),
        st.integers(0, 7),
    ),
    min_size=5,
    max_size=30,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    actions=_ACTIONS,
    kill_at=st.one_of(st.none(), st.none(), st.integers(0, 30)),
    seed=st.integers(0, 99),
)
def test_whatever_happens_results_are_those_of_the_oracle(
    host: HostAttention,
    pool: HostKvPool,
    actions: list[tuple[str, int]],
    kill_at: int | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    kinds = [
        make_model(pool, max_context_len=64),
        make_model(pool, num_heads=2, max_context_len=48, windows=(None, 10)),
    ]
    requests: dict[tuple[int, int], Request] = {}
    owed: set[tuple[int, int]] = set()

    def take_results() -> None:
        results = host.collect()
        columns = (results.model.tolist(), results.slot.tolist(), results.status.tolist())
        for index, slot, status in zip(*columns, strict=True):
            assert status == HostStatus.OK
            owed.remove((index, slot))
            requests[index, slot].check(0, 1)

    def remove(index: int) -> None:
        for key in [key for key in requests if key[0] == index]:
            pool.free(requests.pop(key).block_ids)
        host.remove_model(index)

    for step, (action, number) in enumerate(actions):
        present = host.models
        if step == kill_at and host.pid is not None:
            os.kill(host.pid, signal.SIGKILL)
        if action == "add" and len(present) < 4:
            index = host.add_model(kinds[number % 2])
            for slot in range(2):
                request = Request(host, pool, kinds[number % 2], index, slot)
                request.prefill(0, 5 * number, rng)
                requests[index, slot] = request
        elif action == "remove" and present:
            index = present[number % len(present)]
            if host.in_flight(index).any():
                with pytest.raises(ValueError, match="in flight"):
                    host.remove_model(index)
            else:
                remove(index)
        elif action == "submit" and requests:
            key = sorted(requests)[number % len(requests)]
            if not host.in_flight(key[0])[key[1]] and requests[key].lengths[0] < 48:
                host.submit(*key, 0, requests[key].write(0, 1, rng))
                owed.add(key)
        elif action == "release" and requests:
            key = sorted(requests)[number % len(requests)]
            if key in owed:
                host.release(*key)
                owed.remove(key)
                # Its table is cleared some time; it takes no part any more.
                requests[key].lengths[0] = 48
        else:
            take_results()

    def is_idle() -> bool:
        take_results()
        return not host.num_in_flight

    until(is_idle)
    assert not owed
    for index in host.models:
        remove(index)
