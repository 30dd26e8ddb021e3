"""The ring between one publisher and many workers, and how workers sleep.

Positions count up from 1 and are never used twice, not even by a new process. Position p lives in
cell p & mask. The cell holds the task's descriptor and its completion, so that a result has a place
from the start: workers never reserve, wait for each other, or find a ring full.

1. Publication. The publisher fills a cell only when the task that had it was collected, then stores
   TICKET = (p, parts) with release order. Who reads that ticket with acquire order sees the
   descriptor and, for it was written before, the payload of the task's slot.
2. Claim. A worker takes a part by swapping TICKET from (p, n) to (p, n - 1). As the position is in
   the word, a worker that slept over a whole round of the ring cannot take part of a later task:
   its swap fails. It reads the descriptor after the swap: from then until its part has ended, the
   cell cannot be filled again. Swaps continue the release sequence of the publication, so a second
   claimer sees what the first one sees.
3. End. Each part counts PARTS_LEFT down once (acquire and release): the kernel does it for parts it
   ran, `fail_part` for parts that were refused; a task's only part need not. Exactly one part finds
   itself last. It alone stores DONE = (p, status), with release order, and so after all output and
   after every worker's last use of the cell. One result a task, none lost, none doubled.
4. Collection. The publisher reads DONE with acquire order. It equals (p, ...) only for the task of
   this position: what an earlier task left there has another position. PROGRESS is counted up after
   DONE, so where it has not moved nothing new can be found.
5. Order. Workers walk positions upwards and leave one only when no part of it is unclaimed. OLDEST
   lets one that is far behind catch up: whatever lies before it has been collected.
6. Sleep. A sleeper reads WAKE, counts SLEEPERS up, fences, looks at its cell once more and waits
   for WAKE to change. The publisher stores tickets, fences, looks at SLEEPERS, and where there are
   any counts WAKE up and wakes. Of the two looks at least one sees the other side's store; if only
   the publisher's does, it counts after the sleeper has read, and the wait ends at once or is
   woken.
7. Withdrawal. The publisher takes a task back that nobody began by swapping TICKET from (p, parts)
   to (p, 0). Either that or the first claim succeeds. After it workers find nothing at p and go on;
   the cell stays as it is until its position was counted as collected, so that none of them can
   take it for what they looked for. The task may be published again at a new position.
8. Death. Only when the process is gone for good may the publisher take tasks back or change the
   control block. A task whose DONE is there was finished; any other is published again at a new
   position. Doing it twice is harmless: keys and values are appended by position.
"""

from numba import types

from cpu_attn._jit import compiled
from cpu_attn.host import descriptor as d
from cpu_attn.host.atomics import (
    compare_and_swap,
    fetch_add,
    fetch_add_i32,
    full_fence,
    futex_wake,
    load_acquire,
    load_acquire_i32,
    store_plain,
    store_plain_i32,
    store_release,
)

_TICKET, _DONE, _FAILURE = d.TICKET * 8, d.DONE * 8, d.FAILURE * 8
_NUM_PARTS, _PARTS_LEFT = d.NUM_PARTS * 8, d.PARTS_LEFT * 8
_CELL_BYTES, _LOW_BITS, _LOW_MASK = d.CELL_BYTES, d.LOW_BITS, d.LOW_MASK
_SLEEPERS, _WAKE, _PROGRESS, _STOP = d.SLEEPERS, d.WAKE, d.PROGRESS, d.STOP

_i64 = types.int64


@compiled(_i64(_i64, _i64, _i64))
def cell_of(cells: int, mask: int, position: int) -> int:
    """Address of the cell of a position, where `cells` is that of cell 0."""
    return cells + (position & mask) * _CELL_BYTES


@compiled(types.void(_i64, _i64, _i64))
def publish(cell: int, position: int, num_parts: int) -> None:
    """Makes the descriptor in the cell visible as a task of 1..MAX_PARTS parts."""
    store_plain(cell + _NUM_PARTS, num_parts)
    store_plain_i32(cell + _PARTS_LEFT, num_parts)
    store_plain(cell + _FAILURE, 0)
    store_release(cell + _TICKET, position << _LOW_BITS | num_parts)


@compiled(_i64(_i64))
def read_ticket(cell: int) -> int:
    """(position << LOW_BITS) | unclaimed parts of the task that the cell holds."""
    return int(load_acquire(cell + _TICKET))


@compiled(types.boolean(_i64, _i64))
def claim(cell: int, ticket: int) -> bool:
    """Takes a part of the task whose ticket was read; False where others were quicker."""
    return bool(compare_and_swap(cell + _TICKET, ticket, ticket - 1))


@compiled(types.boolean(_i64, _i64, _i64))
def withdraw(cell: int, position: int, num_parts: int) -> bool:
    """The publisher takes back a task of so many parts; False where a part of it was claimed."""
    ticket = position << _LOW_BITS
    return bool(compare_and_swap(cell + _TICKET, ticket | num_parts, ticket))


@compiled(types.boolean(_i64, _i64))
def fail_part(cell: int, status: int) -> bool:
    """Ends a claimed part that was not run; whether it was the last."""
    store_release(cell + _FAILURE, status)
    return bool(fetch_add_i32(cell + _PARTS_LEFT, -1) == 1)


@compiled(types.void(_i64, _i64))
def publish_result(cell: int, position: int) -> None:
    """Makes the result of a task visible; called by the part that was last."""
    status = load_acquire(cell + _FAILURE)
    store_release(cell + _DONE, position << _LOW_BITS | status)


@compiled(types.void(_i64))
def count_progress(control: int) -> None:
    """Says that a part has ended; after `publish_result` where it was the last."""
    fetch_add(control + _PROGRESS, 1)


@compiled(_i64(_i64))
def read_progress(control: int) -> int:
    return int(load_acquire(control + _PROGRESS))


@compiled(_i64(_i64, _i64))
def read_result(cell: int, position: int) -> int:
    """The status of the task of this position, or -1 while it is not done."""
    done = int(load_acquire(cell + _DONE))
    return done & _LOW_MASK if done >> _LOW_BITS == position else -1


@compiled(_i64(_i64))
def announce_sleep(control: int) -> int:
    """To be followed by a last look for work, waiting for WAKE to change, and `end_sleep`."""
    sequence = int(load_acquire_i32(control + _WAKE))
    fetch_add(control + _SLEEPERS, 1)
    full_fence()
    return sequence


@compiled(types.void(_i64))
def end_sleep(control: int) -> None:
    fetch_add(control + _SLEEPERS, -1)


@compiled(_i64(_i64))
def count_sleepers(control: int) -> int:
    """How many threads may be asleep; asked after publishing."""
    full_fence()
    return int(load_acquire(control + _SLEEPERS))


@compiled(types.void(_i64, _i64))
def wake(control: int, count: int) -> None:
    """Wakes up to `count` sleepers, and all that are about to sleep."""
    fetch_add_i32(control + _WAKE, 1)
    futex_wake(control + _WAKE, count)


@compiled(types.void(_i64))
def request_stop(control: int) -> None:
    """Workers return after the part that they are at."""
    store_release(control + _STOP, 1)
    if count_sleepers(control):
        wake(control, 1 << 30)


@compiled(types.boolean(_i64))
def stop_requested(control: int) -> bool:
    return bool(load_acquire(control + _STOP) != 0)
