"""What becomes of tasks and processes when the host attention process is killed or stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from host_attention_builders import (
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

from cpu_attn.host.attention import HostAttention
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel, PoolMemory


@pytest.fixture(scope="module")
def pool() -> Iterator[HostKvPool]:
    pool = make_pool(num_blocks=2048, head_dim=64)
    yield pool
    pool.close()


@pytest.fixture
def model(pool: HostKvPool) -> HostModel:
    return make_model(pool, max_context_len=128)


def _stop(pid: int) -> None:
    """Returns when all its threads have stopped, which takes them a moment."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: thread_states(pid) == {"T"})


def _wait_for_another(host: HostAttention, pid: int) -> None:
    until(lambda: host.supervise() == "ready" and host.pid != pid)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def test_a_killed_process_is_replaced_and_its_tasks_redone(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(4)
    with running([model], num_slots=64) as host:
        requests = make_requests(host, pool, model, 64, rng)
        first_pid = host.pid
        assert first_pid is not None
        # Stopped, so that there are tasks to lose; submitted again, some are done by then.
        submit_all(host, requests[:32])
        _stop(first_pid)
        submit_all(host, requests[32:])
        os.kill(first_pid, signal.SIGKILL)
        rows = collect(host, 64)
        assert rows == [(0, slot, HostStatus.OK) for slot in range(64)]
        assert host.pid != first_pid
        assert host.counters.num_restarts == 1
        assert host.counters.num_redone >= 32
        assert not len(host.collect())
        for request in requests[::8]:
            request.check(0, 1)
        free_blocks(pool, requests)


def test_kills_at_random_moments_lose_and_double_nothing(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(5)
    with running([model], num_slots=32, max_attempts=100) as host:
        requests = make_requests(host, pool, model, 32, rng)
        for _ in range(4):
            submit_all(host, requests)
            time.sleep(float(rng.uniform(0, 2e-4)))
            killed = host.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert [row[1] for row in collect(host, 32)] == list(range(32))
            for request in requests[::16]:
                request.check(0, 1)
            _wait_for_another(host, killed)
        assert host.counters.num_restarts == 4
        assert host.counters.num_done == 4 * 32
        free_blocks(pool, requests)


def test_a_stuck_process_is_killed_and_replaced(pool: HostKvPool, model: HostModel) -> None:
    rng = np.random.default_rng(6)
    # Longer than the next process may need for a task on a slow machine.
    with running([model], stall_timeout_s=4.0) as host:
        requests = make_requests(host, pool, model, 4, rng)
        stuck = host.pid
        assert stuck is not None
        _stop(stuck)
        submit_all(host, requests)
        assert [row[1:] for row in collect(host, 4)] == [(slot, 0) for slot in range(4)]
        assert host.pid != stuck
        assert host.counters.num_redone == 4
        for request in requests:
            request.check(0, 1)
        free_blocks(pool, requests)


def test_results_of_released_slots_are_dropped(pool: HostKvPool, model: HostModel) -> None:
    rng = np.random.default_rng(7)
    with running([model]) as host:
        requests = make_requests(host, pool, model, 4, rng)
        assert host.pid is not None
        _stop(host.pid)
        submit_all(host, requests)
        host.release(0, [1, 2])
        assert host.in_flight(0)[:4].all()
        # The child may still read them.
        assert (host.slots[0].block_tables[:4] >= 0).all()
        with pytest.raises(ValueError, match="slots: 1 has a task in flight"):
            host.submit(0, 1, 0, 10)
        with pytest.raises(ValueError, match="slot 1 has a task in flight"):
            host.set_block_table(0, 1, [0])
        os.kill(host.pid, signal.SIGCONT)
        assert [row[1] for row in collect(host, 2)] == [0, 3]
        until(lambda: not len(host.collect()) and host.num_in_flight == 0)
        assert host.counters.num_dropped == 2
        assert host.epochs(0)[:4].tolist() == [0, 1, 1, 0]
        assert (host.slots[0].block_tables[:4] >= 0).all(axis=1).tolist() == [
            True,
            False,
            False,
            True,
        ]
        with pytest.raises(ValueError, match="slot 1 has no blocks"):
            host.submit(0, 1, 0, requests[1].lengths[0])
        host.set_block_table(0, 1, requests[1].block_ids)
        host.submit(0, 1, 0, requests[1].lengths[0])
        assert collect(host, 1) == [(0, 1, HostStatus.OK)]
        requests[1].check(0, 1)
        free_blocks(pool, requests)


def test_one_that_cannot_start_says_why(
    pool: HostKvPool, model: HostModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = replace(model.pool, num_blocks=pool.num_blocks - 1)
    host = HostAttention([replace(model, pool=memory)], make_settings())
    with pytest.raises(HostAttentionDown, match="did not start: ValueError: num_bytes"):
        host.start()
    assert host.state == "stopped"
    host.close()
    monkeypatch.setenv("OMNISERVE_CPU_ISA", "abacus")
    host = HostAttention([model], make_settings())
    with pytest.raises(HostAttentionDown, match="exit status 1"):
        host.start()
    host.close()


def test_a_closed_pool_is_named() -> None:
    closed = make_pool(num_blocks=8, head_dim=64)
    model = make_model(closed, max_context_len=128)
    host = HostAttention([model], make_settings())
    fd = closed.fd
    closed.close()
    with pytest.raises(ValueError, match=r"models\[0\]\.pool: the pool is closed"):
        host.start()
    assert host.state == "stopped"
    host.close()
    # Its number may soon be another pool's, of the same size.
    other = make_pool(num_blocks=8, head_dim=64)
    if other.fd != fd:
        os.dup2(other.fd, fd)
    with pytest.raises(ValueError, match=r"models\[0\]\.pool: the pool is closed"):
        HostAttention([model], make_settings())
    if other.fd != fd:
        os.close(fd)
    other.close()
    with pytest.raises(ValueError, match="the pool is closed"):
        _ = closed.memory
    with pytest.raises(ValueError, match="fd -1: the pool is closed"):
        PoolMemory(closed.fd, closed.layout, closed.num_blocks)


def test_nobody_is_started_anew_over_a_closed_pool() -> None:
    closed = make_pool(num_blocks=8, head_dim=64)
    with running([make_model(closed, max_context_len=128)], max_restarts=1) as host:
        pid = host.pid
        assert pid is not None
        closed.close()
        os.kill(pid, signal.SIGKILL)
        until(lambda: host.supervise() == "failed")
        assert host.counters.num_restarts == 1
        with pytest.raises(HostAttentionDown, match=r"models\[0\]\.pool: the pool is closed"):
            host.submit(0, 0, 0, 10)


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
        until(lambda: not _is_running(child))


def test_one_that_dies_too_often_is_given_up_and_tasks_come_back_as_crashed(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(9)
    with running([model], max_restarts=0) as host:
        requests = make_requests(host, pool, model, 3, rng)
        pid = host.pid
        assert pid is not None
        _stop(pid)
        submit_all(host, requests)
        host.release(0, [1])
        os.kill(pid, signal.SIGKILL)
        assert collect(host, 2) == [(0, 0, HostStatus.CRASHED), (0, 2, HostStatus.CRASHED)]
        assert host.state == "failed"
        assert host.num_in_flight == 0
        assert host.counters.num_dropped == 1
        assert (host.slots[0].block_tables[1] == -1).all()
        with pytest.raises(HostAttentionDown, match="signal SIGKILL"):
            submit_all(host, requests)
        host.set_block_table(0, 1, requests[1].block_ids)
        # It may be tried again by hand.
        host.stop()
        host.start()
        submit_all(host, requests)
        assert len(collect(host, 3)) == 3
        requests[2].check(0, 1)
        free_blocks(pool, requests)


def test_stopping_frees_slots_and_ends_the_process(pool: HostKvPool, model: HostModel) -> None:
    with running([model]) as host:
        pid = host.pid
        assert pid is not None
        for slot in range(16):
            host.set_block_table(0, slot, range(7))
        host.submit_many(0, np.arange(16), 0, 100)
        host.release(0, [3])
        host.stop()
        assert host.num_in_flight == 0
        assert (host.slots[0].block_tables[:, 0] < 0).nonzero()[0].tolist() == [3]
        assert not _is_running(pid)
        assert not len(host.collect())
        with pytest.raises(HostAttentionDown, match="stopped"):
            host.submit(0, 0, 0, 10)


def test_what_was_in_flight_at_a_stop_is_not_done_after_the_next_start(
    pool: HostKvPool, model: HostModel
) -> None:
    rng = np.random.default_rng(12)
    with running([model]) as host:
        requests = make_requests(host, pool, model, 4, rng)
        assert host.pid is not None
        _stop(host.pid)
        submit_all(host, requests[:3])
        host.stop(0.0)
        assert (host.counters.num_dropped, host.counters.num_crashed) == (3, 0)
        # The slots are free, and so are their rows.
        host.slots[0].out[:3] = 7.0
        host.start()
        submit_all(host, requests[3:])
        assert collect(host, 1) == [(0, 3, HostStatus.OK)]
        requests[3].check(0, 1)
        assert (host.slots[0].out[:3] == 7.0).all()
        free_blocks(pool, requests)
