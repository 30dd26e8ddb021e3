"""What a worker thread runs: one compiled loop without the interpreter's lock.

Addresses are of the process that runs it. A worker has a table of models that all share and a
scratch that is its own; it takes parts of tasks from the ring (see `ring`), checks them and calls
their kernel.

Models come and go while workers run, and nobody takes a lock:

1. Coming. The main thread maps the model's memory, compiles its kernel and fills its row, all but
   STATE; then it stores STATE = PRESENT with release order. A worker loads STATE with acquire order
   before anything else of the row, so who finds PRESENT sees the whole row and what it points at.
   Only then is the publisher told, and only after that does it publish tasks of the model.
2. Going. The publisher asks for it when no task of the model is in flight: no worker has a part of
   one that it did not end. So nobody may look at the row; but a descriptor may lie, and must not be
   believed. Hence the main thread stores STATE = ABSENT, fences, and looks at BUSY of each worker:
   odd while the worker is at a part. It waits until each was even or has changed since, and only
   then unmaps. A worker stores an odd BUSY and fences before it loads STATE. Of worker and main
   thread at least one sees the other's store (as in `ring`, rule 6): either the worker finds
   ABSENT, and the task ends as BAD_MODEL, or the main thread finds it busy and waits for it.
3. Coming again. A row is filled anew only after such a wait, so that no worker mixes two models.
"""

import numpy as np
from numba import types

from cpu_attn import kernel_task
from cpu_attn._jit import compiled
from cpu_attn.host import descriptor as d
from cpu_attn.host.atomics import (
    call_kernel,
    full_fence,
    futex_wait,
    load_acquire,
    load_plain,
    monotonic_ns,
    pause,
    store_release,
)
from cpu_attn.host.ring import (
    announce_sleep,
    cell_of,
    claim,
    count_progress,
    end_sleep,
    fail_part,
    publish_result,
    read_ticket,
    stop_requested,
)
from cpu_attn.host.token_parts import part_tokens, visible_tokens
from cpu_attn.memory import load_i32

# Fields of a model's row in the table `models`, int64. Addresses and strides are in bytes and of
# slots; keys, values, queries and outputs of a slot are [q_len, heads, head_dim].
LAYERS, NUM_LAYERS = 0, 1
"""Address and rows of the model's own table of kernel tasks, int64 [num_layers, NUM_FIELDS], in
which all is set that does not depend on the slot."""
NUM_BLOCKS, BLOCK_SIZE = 2, 3
NUM_SLOTS, MAX_Q_LEN, MAX_BLOCKS = 4, 5, 6
KERNEL = 7
Q, Q_STRIDE = 8, 9
K, V, KV_STRIDE = 10, 11, 12
OUT, LSE, LSE_STRIDE = 13, 14, 15
TABLES = 16
PARTIALS, PARTIALS_STRIDE = 17, 18
STATE = 19
ABSENT, PRESENT = 0, 1
MODEL_FIELDS = 20

# A worker's scratch, int64: a kernel task, then an item (int32), then a context length (int32),
# then, on a line of its own because the main thread looks at it, BUSY.
_ITEM = kernel_task.NUM_FIELDS
_CONTEXT_LEN = _ITEM + (kernel_task.ITEM_FIELDS + 1) // 2
BUSY = -(-(_CONTEXT_LEN + 1) // d.LINE_WORDS) * d.LINE_WORDS
SCRATCH_WORDS = BUSY + d.LINE_WORDS

_SPINS_PER_CLOCK = 64
_OK, _NO_MEMORY = int(d.HostStatus.OK), int(d.HostStatus.NO_MEMORY)
_BAD_MODEL, _BAD_SLOT = int(d.HostStatus.BAD_MODEL), int(d.HostStatus.BAD_SLOT)
_BAD_LAYER, _BAD_Q_LEN = int(d.HostStatus.BAD_LAYER), int(d.HostStatus.BAD_Q_LEN)
_BAD_CONTEXT_LEN = int(d.HostStatus.BAD_CONTEXT_LEN)
_BAD_PARTS, _BAD_BLOCK = int(d.HostStatus.BAD_PARTS), int(d.HostStatus.BAD_BLOCK)
_LOW_BITS, _LOW_MASK, _OLDEST, _WAKE = d.LOW_BITS, d.LOW_MASK, d.OLDEST, d.WAKE
_MODEL, _SLOT, _LAYER = d.MODEL * 8, d.SLOT * 8, d.LAYER * 8
_CONTEXT, _Q_LEN, _NUM_PARTS = d.CONTEXT_LEN * 8, d.Q_LEN * 8, d.NUM_PARTS * 8
_PARTS_LEFT = d.PARTS_LEFT * 8

_i64 = types.int64
_vector, _table = types.int64[::1], types.int64[:, ::1]


@compiled(_i64(_i64, _i64, _i64, _i64))
def _check_blocks(table: int, first: int, stop: int, num_blocks: int) -> int:
    for index in range(first, stop):
        block = load_i32(table + 4 * index)
        if block < 0 or block >= num_blocks:
            return _BAD_BLOCK
    return _OK


@compiled(_i64(_i64, _table))
def check_descriptor(cell, models):
    """The HostStatus of a descriptor before any of it is used; BAD_PARTS is for `fill_part`."""
    model_id = load_plain(cell + _MODEL)
    if model_id < 0 or model_id >= models.shape[0]:
        return _BAD_MODEL
    model = models[model_id]
    if load_acquire(model.ctypes.data + 8 * STATE) != PRESENT:
        return _BAD_MODEL
    slot = load_plain(cell + _SLOT)
    if slot < 0 or slot >= model[NUM_SLOTS]:
        return _BAD_SLOT
    layer = load_plain(cell + _LAYER)
    if layer < 0 or layer >= model[NUM_LAYERS]:
        return _BAD_LAYER
    q_len, context_len = load_plain(cell + _Q_LEN), load_plain(cell + _CONTEXT)
    if q_len < 1 or q_len > model[MAX_Q_LEN]:
        return _BAD_Q_LEN
    block_size = model[BLOCK_SIZE]
    if context_len < q_len or context_len > model[MAX_BLOCKS] * block_size:
        return _BAD_CONTEXT_LEN
    template = model[LAYERS] + 8 * kernel_task.NUM_FIELDS * layer
    window = load_plain(template + 8 * kernel_task.WINDOW)
    sink_tokens = load_plain(template + 8 * kernel_task.SINK_TOKENS)
    sink_stop, first = visible_tokens(context_len, q_len, window, sink_tokens)
    # Every part looks at all blocks, not at its own only: so all of them say the same.
    table = model[TABLES] + 4 * model[MAX_BLOCKS] * slot
    stop_block = (context_len + block_size - 1) // block_size
    status = _check_blocks(table, first // block_size, stop_block, model[NUM_BLOCKS])
    if status == _OK:
        sink_blocks = (sink_stop + block_size - 1) // block_size
        status = _check_blocks(table, 0, sink_blocks, model[NUM_BLOCKS])
    return status


@compiled(_i64(_i64, _i64, _table, _vector))
def fill_part(cell, unclaimed, models, scratch):
    """Writes the kernel's task for a part of a checked descriptor; its HostStatus."""
    model = models[load_plain(cell + _MODEL)]
    slot = load_plain(cell + _SLOT)
    context_len, q_len = load_plain(cell + _CONTEXT), load_plain(cell + _Q_LEN)
    num_parts = load_plain(cell + _NUM_PARTS)
    part = num_parts - unclaimed
    template = model[LAYERS] + 8 * kernel_task.NUM_FIELDS * load_plain(cell + _LAYER)
    for field in range(kernel_task.NUM_FIELDS):
        scratch[field] = load_plain(template + 8 * field)
    first, stop = part_tokens(
        context_len,
        q_len,
        scratch[kernel_task.WINDOW],
        scratch[kernel_task.SINK_TOKENS],
        part,
        num_parts,
    )
    if first == stop or num_parts * scratch[kernel_task.PARTIAL_STRIDE] > model[PARTIALS_STRIDE]:
        return _BAD_PARTS
    scratch[kernel_task.NUM_ITEMS] = 1
    scratch[kernel_task.ITEMS] = scratch.ctypes.data + 8 * _ITEM
    scratch[kernel_task.CONTEXT_LENS] = scratch.ctypes.data + 8 * _CONTEXT_LEN
    scratch[kernel_task.Q_LEN] = q_len
    scratch[kernel_task.Q] = model[Q] + model[Q_STRIDE] * slot
    scratch[kernel_task.K] = model[K] + model[KV_STRIDE] * slot
    scratch[kernel_task.V] = model[V] + model[KV_STRIDE] * slot
    scratch[kernel_task.OUT] = model[OUT] + model[Q_STRIDE] * slot
    scratch[kernel_task.LSE] = model[LSE] + model[LSE_STRIDE] * slot
    scratch[kernel_task.TABLES] = model[TABLES] + 4 * model[MAX_BLOCKS] * slot
    scratch[kernel_task.PARTIALS] = model[PARTIALS] + model[PARTIALS_STRIDE] * slot
    scratch[kernel_task.PARTS_LEFT] = cell + _PARTS_LEFT
    scratch[_CONTEXT_LEN] = context_len
    item = scratch[_ITEM:_CONTEXT_LEN].view(np.int32)
    item[kernel_task.SEQUENCE] = 0
    item[kernel_task.FIRST_HEAD] = 0
    item[kernel_task.HEADS] = scratch[kernel_task.NUM_KV_HEADS]
    item[kernel_task.FIRST_TOKEN] = first
    item[kernel_task.STOP_TOKEN] = stop
    item[kernel_task.FIRST_PART] = 0 if num_parts > 1 else -1
    item[kernel_task.PART] = part
    item[kernel_task.NUM_PARTS] = num_parts
    item[kernel_task.GROUP] = 0
    return _OK


@compiled(types.void(_i64, _i64, _i64, _table, _vector))
def run_part(control, cell, ticket, models, scratch):
    """Runs the part that was claimed by swapping this ticket, to the end of its duties."""
    busy = scratch.ctypes.data + 8 * BUSY
    store_release(busy, scratch[BUSY] + 1)
    full_fence()
    status = check_descriptor(cell, models)
    if status == _OK:
        status = fill_part(cell, ticket & _LOW_MASK, models, scratch)
    if status == _OK:
        kernel = models[load_plain(cell + _MODEL), KERNEL]
        call_kernel(kernel, scratch.ctypes.data)
        if scratch[kernel_task.NEXT_ITEM] == 0:
            # It cannot raise: where memory for its scratch was not to be had, it took nothing.
            status = _NO_MEMORY
    if status == _OK:
        is_last = scratch[kernel_task.NUM_FINISHED] > 0
    else:
        is_last = fail_part(cell, status)
    store_release(busy, scratch[BUSY] + 1)
    if is_last:
        publish_result(cell, ticket >> _LOW_BITS)
    count_progress(control)


@compiled(types.void(_table, _i64, _i64))
def set_state(models, model, state):
    """Stored after everything else in the row; ABSENT is seen by all who begin a part later."""
    store_release(models[model].ctypes.data + 8 * STATE, state)
    full_fence()


@compiled(_i64(_vector))
def read_busy(scratch):
    """A worker's count of parts begun and ended: odd while it is at one."""
    return load_acquire(scratch.ctypes.data + 8 * BUSY)


@compiled(types.void(_i64, _i64, _i64))
def _sleep(control, cell, position):
    sequence = announce_sleep(control)
    if read_ticket(cell) >> _LOW_BITS < position and not stop_requested(control):
        futex_wait(control + _WAKE, sequence)
    end_sleep(control)


@compiled(types.void(_i64, _i64, _i64, _table, _vector, _i64))
def serve(control, cells, mask, models, scratch, spin_ns):
    """Takes parts until told to stop; spins for `spin_ns` without work, then sleeps.

    control, cells: addresses in the arena; mask: cells of the ring - 1; models: int64 [MAX_MODELS,
    MODEL_FIELDS], the table of all workers; scratch: int64 [SCRATCH_WORDS] of this one.
    """
    position = load_acquire(control + _OLDEST)
    num_spins = 0
    idle_since_ns = 0
    while not stop_requested(control):
        cell = cell_of(cells, mask, position)
        ticket = read_ticket(cell)
        published = ticket >> _LOW_BITS
        if published < position:
            if num_spins == 0:
                idle_since_ns = monotonic_ns()
            num_spins += 1
            pause()
            if num_spins % _SPINS_PER_CLOCK == 0 and monotonic_ns() - idle_since_ns > spin_ns:
                _sleep(control, cell, position)
                position = max(position, load_acquire(control + _OLDEST))
                num_spins = 0
            continue
        num_spins = 0
        if published > position:
            position = max(position + 1, load_acquire(control + _OLDEST))
        elif ticket & _LOW_MASK == 0:
            position += 1
        elif claim(cell, ticket):
            run_part(control, cell, ticket, models, scratch)
