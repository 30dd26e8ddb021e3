"""The host attention process against the oracle, and what becomes of it when it is maltreated."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from host_attention_builders import CORES, Request, make_model, running
from host_pool_builders import make_pool

from cpu_attn.element import Element
from cpu_attn.host.attention import HostAttention
from cpu_attn.host.books import HostResults
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel

_PATIENCE_S = 120.0


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def _thread_states(pid: int) -> list[tuple[str, str]]:
    """(name, state) of each thread."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [(s[s.index("(") + 1 : s.rindex(")")], s[s.rindex(")") + 2]) for s in stats]


def _stop(pid: int) -> None:
    """Returns when all its threads have stopped, which takes them a moment."""
    os.kill(pid, signal.SIGSTOP)
    _until(lambda: {state for _, state in _thread_states(pid)} == {"T"})


def _collect(host: HostAttention, count: int) -> list[tuple[int, int, int]]:
    """(model, slot, status) of `count` results, sorted; all must be of different slots."""
    rows: list[tuple[int, int, int]] = []

    def enough() -> bool:
        results = host.collect()
        rows.extend(
            zip(results.model.tolist(), results.slot.tolist(), results.status.tolist(), strict=True)
        )
        return len(rows) >= count

    _until(enough)
    assert len(rows) == count == len({row[:2] for row in rows})
    return sorted(rows)


@pytest.fixture(scope="module")
def pool() -> Iterator[HostKvPool]:
    pool = make_pool(num_blocks=2048, head_dim=64)
    yield pool
    pool.close()


@pytest.fixture
def model(pool: HostKvPool) -> HostModel:
    return make_model(pool, max_context_len=128)


def _requests(
    host: HostAttention, pool: HostKvPool, model: HostModel, num: int, rng: np.random.Generator
) -> list[Request]:
    """With 40 tokens and more in every layer, and new ones written to their slots."""
    requests = [Request(host, pool, model, 0, slot) for slot in range(num)]
    for request in requests:
        request.prefill(0, 40 + request.slot, rng)
        request.write(0, 1, rng)
    return requests


def _submit_all(host: HostAttention, requests: list[Request]) -> None:
    slots = np.array([request.slot for request in requests])
    host.submit_many(0, slots, 0, np.array([request.lengths[0] for request in requests]))


def _wait_for_another(host: HostAttention, pid: int) -> None:
    _until(lambda: host.supervise() == "ready" and host.pid != pid)


def _free(pool: HostKvPool, requests: list[Request]) -> None:
    for request in requests:
        pool.free(request.block_ids)


def test_tasks_of_models_layers_and_requests_mixed_agree_with_the_oracle() -> None:
    rng = np.random.default_rng(3)
    pools = [
        make_pool(num_blocks=600, head_dim=64),
        make_pool(Element.BFLOAT16, num_blocks=64, head_dim=64, block_size=32, num_kv_heads=1),
        make_pool(Element.INT8, num_blocks=64, head_dim=64),
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
            rows = _collect(host, len(requests))
            assert rows == sorted((r.index, r.slot, int(HostStatus.OK)) for r in requests)
            for request, (layer, q_len) in asked.items():
                request.check(layer, q_len)
        assert host.counters.num_done == 6 * len(requests)
        assert host.counters.num_restarts == 0
    for kv_pool in pools:
        kv_pool.close()


def test_a_killed_process_is_replaced_and_its_tasks_redone(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(4)
    with running([model], num_slots=64) as host:
        requests = _requests(host, pool, model, 64, rng)
        first_pid = host.pid
        assert first_pid is not None
        # Stopped, so that there are tasks to lose; submitted again, some are done by then.
        _submit_all(host, requests[:32])
        _stop(first_pid)
        _submit_all(host, requests[32:])
        os.kill(first_pid, signal.SIGKILL)
        rows = _collect(host, 64)
        assert rows == [(0, slot, HostStatus.OK) for slot in range(64)]
        assert host.pid != first_pid
        assert host.counters.num_restarts == 1
        assert host.counters.num_redone >= 32
        assert not len(host.collect())
        for request in requests[::8]:
            request.check(0, 1)
        _free(pool, requests)


def test_kills_at_random_moments_lose_and_double_nothing(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(5)
    with running([model], num_slots=32, max_attempts=100) as host:
        requests = _requests(host, pool, model, 32, rng)
        for _ in range(4):
            _submit_all(host, requests)
            time.sleep(float(rng.uniform(0, 2e-4)))
            killed = host.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert [row[1] for row in _collect(host, 32)] == list(range(32))
            for request in requests[::16]:
                request.check(0, 1)
            _wait_for_another(host, killed)
        assert host.counters.num_restarts == 4
        assert host.counters.num_done == 4 * 32
        _free(pool, requests)


def test_a_stuck_process_is_killed_and_replaced(pool: HostKvPool, model: HostModel) -> None:
    rng = np.random.default_rng(6)
    with running([model], stall_timeout_s=0.5) as host:
        requests = _requests(host, pool, model, 4, rng)
        stuck = host.pid
        assert stuck is not None
        _stop(stuck)
        _submit_all(host, requests)
        assert [row[1:] for row in _collect(host, 4)] == [(slot, 0) for slot in range(4)]
        assert host.pid != stuck
        assert host.counters.num_redone == 4
        for request in requests:
            request.check(0, 1)
        _free(pool, requests)


def test_results_of_released_slots_are_dropped(pool: HostKvPool, model: HostModel) -> None:
    rng = np.random.default_rng(7)
    with running([model]) as host:
        requests = _requests(host, pool, model, 4, rng)
        assert host.pid is not None
        _stop(host.pid)
        _submit_all(host, requests)
        host.release(0, [1, 2])
        assert host.in_flight(0)[:4].all()
        with pytest.raises(ValueError, match="slots: 1 has a task in flight"):
            host.submit(0, 1, 0, 10)
        with pytest.raises(ValueError, match="slot 1 has a task in flight"):
            host.set_block_table(0, 1, [0])
        os.kill(host.pid, signal.SIGCONT)
        assert [row[1] for row in _collect(host, 2)] == [0, 3]
        _until(lambda: not len(host.collect()) and host.num_in_flight == 0)
        assert host.counters.num_dropped == 2
        assert host.epochs(0)[:4].tolist() == [0, 1, 1, 0]
        host.submit(0, 1, 0, requests[1].lengths[0])
        assert _collect(host, 1) == [(0, 1, HostStatus.OK)]
        requests[1].check(0, 1)
        _free(pool, requests)


def test_blocks_outside_the_pool_are_an_error_of_the_task(
    pool: HostKvPool, model: HostModel
) -> None:
    with running([model]) as host:
        host.slots[0].block_tables[0] = pool.num_blocks
        host.slots[0].block_tables[1] = -1
        host.submit_many(0, [0, 1], 0, 100)
        assert [row[2] for row in _collect(host, 2)] == [HostStatus.BAD_BLOCK] * 2
        assert host.counters.num_restarts == 0


def test_wrong_arguments_are_named(pool: HostKvPool, model: HostModel) -> None:
    with running([model]) as host:
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
            ((1, [1], 0, 10), "model 1: 0..0 are allowed"),
        ):
            with pytest.raises(ValueError, match=message):
                host.submit_many(*arguments)
        with pytest.raises(TypeError, match="slots: float64, integers are needed"):
            host.submit_many(0, np.array([0.5]), 0, 10)
        assert host.num_in_flight == 0
        for table, message in (
            ([pool.num_blocks], f"0..{pool.num_blocks - 1} are allowed"),
            ([0] * 9, "entries 0..8 of 8"),
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
        requests = _requests(host, pool, model, 2, rng)
        for request in requests:
            _until(lambda: {state for _, state in _thread_states(pid)} == {"S"})
            _submit_all(host, [request])
            assert _collect(host, 1) == [(0, request.slot, HostStatus.OK)]
            request.check(0, 1)
        _free(pool, requests)


def test_workers_are_pinned(model: HostModel) -> None:
    with running([model]) as host:
        tasks = [int(path.name) for path in Path(f"/proc/{host.pid}/task").iterdir()]
        pinned = [cores for task in tasks if len(cores := os.sched_getaffinity(task)) == 1]
        assert sorted(core for cores in pinned for core in cores) == sorted(CORES)


_PARENT = """
import sys
sys.path[:0] = sys.argv[1:]
from host_attention_builders import make_model, make_settings
from host_pool_builders import make_pool
from cpu_attn.host.attention import HostAttention
pool = make_pool(num_blocks=8, head_dim=64)
host = HostAttention([make_model(pool)], make_settings())
host.start()
print(host.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_process_dies_with_its_parent(stopped: bool) -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-c", _PARENT, str(tests), str(tests.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if stopped:
            _stop(child)
        parent.kill()
        _until(lambda: not _is_running(child))


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def test_one_that_dies_too_often_is_given_up_and_tasks_come_back_as_crashed(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(9)
    with running([model], max_restarts=0) as host:
        requests = _requests(host, pool, model, 3, rng)
        pid = host.pid
        assert pid is not None
        _stop(pid)
        _submit_all(host, requests)
        host.release(0, [1])
        os.kill(pid, signal.SIGKILL)
        assert _collect(host, 2) == [(0, 0, HostStatus.CRASHED), (0, 2, HostStatus.CRASHED)]
        assert host.state == "failed"
        assert host.num_in_flight == 0
        assert host.counters.num_dropped == 1
        with pytest.raises(HostAttentionDown, match="signal SIGKILL"):
            _submit_all(host, requests)
        # It may be tried again by hand.
        host.stop()
        host.start()
        _submit_all(host, requests)
        assert len(_collect(host, 3)) == 3
        requests[2].check(0, 1)
        _free(pool, requests)


def test_stopping_frees_slots_and_ends_the_process(pool: HostKvPool, model: HostModel) -> None:
    with running([model]) as host:
        pid = host.pid
        assert pid is not None
        host.submit_many(0, np.arange(16), 0, 100)
        host.stop()
        assert host.num_in_flight == 0
        assert not _is_running(pid)
        assert isinstance(host.collect(), HostResults)
        with pytest.raises(HostAttentionDown, match="stopped"):
            host.submit(0, 0, 0, 10)
