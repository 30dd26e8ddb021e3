"""The host attention process against the oracle, and what it refuses."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from host_attention_builders import (
    CORES,
    Request,
    collect,
    free_blocks,
    make_model,
    make_requests,
    make_settings,
    running,
    submit_all,
    thread_states,
    until,
)
from host_pool_builders import make_pool

from cpu_attn.element import Element
from cpu_attn.host.attention import HostAttention
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel


@pytest.fixture(scope="module")
def pool() -> Iterator[HostKvPool]:
    pool = make_pool(num_blocks=2048, head_dim=64)
    yield pool
    pool.close()


@pytest.fixture
def model(pool: HostKvPool) -> HostModel:
    return make_model(pool, max_context_len=128)


def test_tasks_of_models_layers_and_requests_mixed_agree_with_the_oracle() -> None:
    rng = np.random.default_rng(3)
    pools = [
        # Kernels that other tests need as well: to compile one takes seconds.
        make_pool(num_blocks=600, head_dim=64),
        make_pool(Element.BFLOAT16, num_blocks=64, head_dim=128, block_size=32, num_kv_heads=1),
        make_pool(Element.INT8, num_blocks=64, head_dim=128),
    ]
    sinks = tuple(tuple(rng.normal(size=4).tolist()) for _ in range(2))
    models = [
        make_model(pools[0], max_context_len=2300, windows=(None, 70), sink_tokens=3, max_q_len=4),
        make_model(pools[1], num_heads=5, max_q_len=2),
        make_model(pools[2], sinks=sinks, windows=(None, 30)),
    ]
    with running(models, num_slots=6) as host:
        requests = [
            Request(host, pools[index], models[index], index, slot)
            for index, count in ((0, 4), (1, 3), (2, 3))
            for slot in range(count)
        ]
        for request in requests:
            for layer in range(2):
                request.prefill(layer, int(rng.integers(4, 200)), rng)
        # One that is cut into parts, one whose sink tokens lie apart from its window.
        for layer in range(2):
            requests[0].prefill(layer, 2200, rng)
        for _ in range(6):
            asked = {}
            for request in requests:
                layer, q_len = int(rng.integers(2)), int(rng.integers(request.model.max_q_len)) + 1
                length = request.write(layer, q_len, rng)
                asked[request] = (layer, q_len)
                host.submit(request.index, request.slot, layer, length, q_len)
            rows = collect(host, len(requests))
            assert rows == sorted((r.index, r.slot, int(HostStatus.OK)) for r in requests)
            for request, (layer, q_len) in asked.items():
                request.check(layer, q_len)
        assert host.counters.num_done == 6 * len(requests)
        assert host.counters.num_restarts == 0
    for kv_pool in pools:
        kv_pool.close()


def test_blocks_outside_the_pool_are_an_error_of_the_task(
    pool: HostKvPool, model: HostModel
) -> None:
    with running([model]) as host:
        for slot in (0, 1):
            host.set_block_table(0, slot, range(8))
        host.slots[0].block_tables[0, 3] = pool.num_blocks
        host.slots[0].block_tables[1, 0] = -1
        host.submit_many(0, [0, 1], 0, 100)
        assert [row[2] for row in collect(host, 2)] == [HostStatus.BAD_BLOCK] * 2
        assert host.counters.num_restarts == 0


def test_a_task_without_blocks_of_its_own_touches_no_other_s(
    pool: HostKvPool, model: HostModel
) -> None:
    others = pool.allocate(pool.num_free_blocks)
    pages = pool.copy_out(others)
    with running([model]) as host:
        for arrays in (host.slots[0].q, host.slots[0].k, host.slots[0].v):
            arrays[:] = 1.0
        with pytest.raises(ValueError, match=r"context_lens: 8, but the block table of slot 2 has"):
            host.submit(0, 2, 0, 8)
        host.set_block_table(0, 1, others[:2])
        message = r"slot 1 has no blocks for tokens 32\.\.32: set_block_table"
        with pytest.raises(ValueError, match=message):
            host.submit(0, 1, 0, 33)
        # An entry that is read, not written, is the child's to find.
        host.set_block_table(0, 3, others[:2], first=2)
        assert host.slots[0].block_tables[3].tolist() == [-1, -1, *others[:2], -1, -1, -1, -1]
        host.submit(0, 3, 0, 64)
        assert collect(host, 1) == [(0, 3, HostStatus.BAD_BLOCK)]
        assert not host.in_flight(0).any()
    np.testing.assert_array_equal(pool.copy_out(others), pages)
    pool.free(others)


def test_a_new_table_leaves_nothing_of_the_old_one(pool: HostKvPool, model: HostModel) -> None:
    with running([model]) as host:
        host.set_block_table(0, 0, range(8))
        host.set_block_table(0, 0, [9, 10])
        assert host.slots[0].block_tables[0].tolist() == [9, 10] + [-1] * 6
        host.set_block_table(0, 0, [11], first=2)
        assert host.slots[0].block_tables[0].tolist() == [9, 10, 11] + [-1] * 5
        host.release(0, [])
        assert host.slots[0].block_tables[0, 0] == 9
        host.release(0, 0)
        assert host.slots[0].block_tables[0].tolist() == [-1] * 8
        host.set_block_table(0, 0, [])
        assert host.slots[0].block_tables[0].tolist() == [-1] * 8


def test_wrong_arguments_are_named(pool: HostKvPool, model: HostModel) -> None:
    with running([model]) as host:
        host.set_block_table(0, 1, range(8))
        for arguments, message in (
            ((0, [16], 0, 10), "slots: 16, 0..15 are allowed"),
            ((0, [-1], 0, 10), "slots: -1"),
            ((0, [1, 1], 0, 10), "slots: 1 has a task in flight"),
            ((0, [1], 2, 10), "layers: 2, 0..1 are allowed"),
            ((0, [1], -1, 10), "layers: -1"),
            ((0, [1], 0, 0), "context_lens: 0"),
            ((0, [1], 0, 129), "context_lens: 129, from q_len 1 to 128 are allowed"),
            ((0, [1], 0, 10, 2), "q_lens: 2, 1..1 are allowed"),
            ((0, [1, 2], [0, 0, 0], 10), "layers: shape"),
            ((0, [[1]], 0, 10), "slots: shape"),
            ((1, [1], 0, 10), r"model 1: \[0\] are there"),
        ):
            with pytest.raises(ValueError, match=message):
                host.submit_many(*arguments)
        with pytest.raises(TypeError, match="slots: float64, integers are needed"):
            host.submit_many(0, np.array([0.5]), 0, 10)
        assert host.num_in_flight == 0
        for table, message in (
            ([pool.num_blocks], f"0..{pool.num_blocks - 1} are allowed"),
            ([0] * 9, "entries 0..8 of 8"),
            ([[0]], r"block_ids: shape \(1, 1\)"),
        ):
            with pytest.raises(ValueError, match=message):
                host.set_block_table(0, 0, table)
        with pytest.raises(ValueError, match="slot 16"):
            host.set_block_table(0, 16, [0])
        host.submit_many(0, [], 0, 10)
        assert not len(host.collect())


def test_without_work_all_threads_sleep_and_wake_for_a_task(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(8)
    with running([model]) as host:
        pid = host.pid
        assert pid is not None
        requests = make_requests(host, pool, model, 2, rng)
        for request in requests:
            until(lambda: thread_states(pid) == {"S"})
            submit_all(host, [request])
            assert collect(host, 1) == [(0, request.slot, HostStatus.OK)]
            request.check(0, 1)
        free_blocks(pool, requests)


def test_workers_are_pinned(model: HostModel) -> None:
    with running([model]) as host:
        tasks = [int(path.name) for path in Path(f"/proc/{host.pid}/task").iterdir()]
        pinned = [cores for task in tasks if len(cores := os.sched_getaffinity(task)) == 1]
        assert sorted(core for cores in pinned for core in cores) == sorted(CORES)


def test_it_starts_on_its_own_cores_wherever_its_parent_runs(model: HostModel) -> None:
    before = os.sched_getaffinity(0)
    host = HostAttention([model], make_settings(cores=CORES[-1:]))
    try:
        os.sched_setaffinity(0, CORES[:1])
        host.begin_start()
        assert host.pid is not None
        assert os.sched_getaffinity(host.pid) == {CORES[-1]}
    finally:
        os.sched_setaffinity(0, before)
        host.close()
