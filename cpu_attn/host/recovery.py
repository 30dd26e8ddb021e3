"""What becomes of the publisher's books when a process is gone, compiled; see `ledger`."""

from numba import types

from cpu_attn._jit import compiled
from cpu_attn.host import descriptor as d
from cpu_attn.host import ledger, ring
from cpu_attn.host import turns as t
from cpu_attn.host.atomics import fetch_add, store_plain

_LOW_BITS, _LOW_MASK, _CRASHED = d.LOW_BITS, d.LOW_MASK, int(d.HostStatus.CRASHED)
_CONTROL_OLDEST, _PROGRESS, _SLEEPERS, _STOP = d.OLDEST, d.PROGRESS, d.SLEEPERS, d.STOP
_TICKET, _DONE = d.TICKET * 8, d.DONE * 8
_TAIL, _OLDEST, _NUM_WAITING = ledger.TAIL, ledger.OLDEST, ledger.NUM_WAITING
_NUM_CRASHED, _NUM_REDONE = ledger.NUM_CRASHED, ledger.NUM_REDONE
_EPOCH, _NUM_PARTS, _ATTEMPTS = ledger.EPOCH, ledger.NUM_PARTS, ledger.ATTEMPTS

_i64 = types.int64
_vector, _table = types.int64[::1], types.int64[:, ::1]


@compiled(types.void(_i64, _i64, _i64, _table, _vector, _table, _table, _vector, _vector, _i64))
def recover(control, cells, mask, tasks, epochs, turns, queues, cell_tasks, counters, max_attempts):
    """Makes the ring ready for a new process; the old one must be gone for good.

    Results that are there stay. Unfinished tasks go to the front of their queues, where `flush`
    drops those of released slots; those that were being worked on for the last of max_attempts
    times end as CRASHED.
    """
    for position in range(counters[_TAIL] - 1, counters[_OLDEST] - 1, -1):
        task = cell_tasks[position & mask]
        cell = ring.cell_of(cells, mask, position)
        if task < 0 or ring.read_result(cell, position) >= 0:
            continue
        if ring.read_ticket(cell) & _LOW_MASK < tasks[task, _NUM_PARTS]:
            tasks[task, _ATTEMPTS] += 1
        # Nobody may find unclaimed parts at this position any more.
        store_plain(cell + _TICKET, position << _LOW_BITS)
        if tasks[task, _ATTEMPTS] >= max_attempts:
            store_plain(cell + _DONE, position << _LOW_BITS | _CRASHED)
            counters[_NUM_CRASHED] += 1
            continue
        counters[_NUM_REDONE] += tasks[task, _EPOCH] == epochs[task]
        ledger.take_back(tasks, turns, queues, cell_tasks, counters, mask, position)
    store_plain(control + _SLEEPERS, 0)
    store_plain(control + _STOP, 0)
    # A worker may have died between a result and its progress; and a crash is progress of a kind.
    fetch_add(control + _PROGRESS, 1)


@compiled(types.void(_i64, _i64, _i64, _table, _vector, _vector))
def withdraw(control, cells, mask, turns, cell_tasks, counters):
    """Leaves nothing for a later process to do; the old one must be gone for good."""
    for position in range(counters[_OLDEST], counters[_TAIL]):
        store_plain(ring.cell_of(cells, mask, position) + _TICKET, position << _LOW_BITS)
        cell_tasks[position & mask] = -1
    turns[:, t.NUM_WAITING] = 0
    turns[:, t.PUBLISHED] = 0
    counters[_NUM_WAITING] = 0
    counters[_OLDEST] = counters[_TAIL]
    store_plain(control + _CONTROL_OLDEST, counters[_OLDEST])
