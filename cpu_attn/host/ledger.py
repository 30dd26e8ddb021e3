"""The publisher's books, compiled: which slot has which task where.

A task is numbered model * num_slots + slot, for a slot has one at a time. It waits in the queue of
its model until it is its turn (see `turns`) and a ring cell is free, is published, and stays in the
books until its result was collected. There is room for MAX_MODELS models; the rows of an index that
is free are zeros.
"""

from numba import types

from cpu_attn._jit import compiled
from cpu_attn.host import descriptor as d
from cpu_attn.host import ring
from cpu_attn.host import turns as t
from cpu_attn.host.atomics import load_plain, store_plain, store_release
from cpu_attn.host.token_parts import count_parts, visible_tokens
from cpu_attn.memory import load_i32

# Columns of `tasks`, int64 [MAX_MODELS * num_slots, TASK_FIELDS].
POSITION = 0
"""In the ring, or one of these."""
FREE, WAITING = 0, -1
LAYER, CONTEXT_LEN, Q_LEN, NUM_PARTS = 1, 2, 3, 4
EPOCH = 5
"""The slot's when the task was submitted."""
ATTEMPTS = 6
"""Deaths of the process while it was being worked on."""
TOKENS = 7
"""Context tokens that are attended to."""
TASK_FIELDS = 8

# Columns of `models`, int64 [MAX_MODELS, MODEL_FIELDS].
NUM_LAYERS, MAX_Q_LEN, MAX_TOKENS, LAYERS = 0, 1, 2, 3
"""LAYERS: address of the model's own table, int64 [num_layers, LAYER_FIELDS]."""
BLOCK_SIZE, NUM_BLOCKS = 4, 5
TABLES, TABLE_STRIDE = 6, 7
"""Address of the model's block tables in this process, and bytes from slot to slot."""
MODEL_FIELDS = 8
WINDOW, SINK_TOKENS = 0, 1
LAYER_FIELDS = 2

# Columns of `requests`, int64.
REQUEST_SLOT, REQUEST_LAYER, REQUEST_CONTEXT_LEN, REQUEST_Q_LEN = 0, 1, 2, 3
REQUEST_FIELDS = 4

# Columns of `results`, int64.
RESULT_MODEL, RESULT_SLOT, RESULT_LAYER, RESULT_STATUS, RESULT_EPOCH = 0, 1, 2, 3, 4
RESULT_FIELDS = 5

# `counters`, int64.
TAIL = 0
"""The next position."""
OLDEST = 1
"""All positions before it were collected."""
NUM_WAITING = 2
"""Tasks in the queues of all models."""
CLOCK = 3
"""Of `turns`, in tokens."""
PROGRESS_SEEN = 4
NUM_DONE, NUM_DROPPED, NUM_REDONE, NUM_CRASHED = 5, 6, 7, 8
NUM_COUNTERS = 9

# What `enqueue` finds wrong with a request.
FINE, NO_SLOT, SLOT_BUSY, NO_LAYER, WRONG_Q_LEN, WRONG_CONTEXT_LEN, NO_BLOCK = 0, 1, 2, 3, 4, 5, 6
ERROR_BITS = 3

_LOW_BITS, _LOW_MASK, _CRASHED = d.LOW_BITS, d.LOW_MASK, int(d.HostStatus.CRASHED)
_CONTROL_OLDEST, _PROGRESS, _SLEEPERS, _STOP = d.OLDEST, d.PROGRESS, d.SLEEPERS, d.STOP
_TICKET, _DONE = d.TICKET * 8, d.DONE * 8
_CELL_MODEL, _CELL_SLOT, _CELL_LAYER = d.MODEL * 8, d.SLOT * 8, d.LAYER * 8
_CELL_CONTEXT_LEN, _CELL_Q_LEN = d.CONTEXT_LEN * 8, d.Q_LEN * 8

_i64 = types.int64
_vector, _table = types.int64[::1], types.int64[:, ::1]


@compiled(_i64(_vector, _vector, _i64, _i64))
def _request_error(request, limits, num_slots, position):
    slot, layer = request[REQUEST_SLOT], request[REQUEST_LAYER]
    q_len, context_len = request[REQUEST_Q_LEN], request[REQUEST_CONTEXT_LEN]
    if slot < 0 or slot >= num_slots:
        return NO_SLOT
    if position != FREE:
        return SLOT_BUSY
    if layer < 0 or layer >= limits[NUM_LAYERS]:
        return NO_LAYER
    if q_len < 1 or q_len > limits[MAX_Q_LEN]:
        return WRONG_Q_LEN
    if context_len < q_len or context_len > limits[MAX_TOKENS]:
        return WRONG_CONTEXT_LEN
    # Only those that are written, so that this stays cheap; the worker looks at all.
    block_size, table = limits[BLOCK_SIZE], limits[TABLES] + limits[TABLE_STRIDE] * slot
    for index in range((context_len - q_len) // block_size, (context_len - 1) // block_size + 1):
        block = load_i32(table + 4 * index)
        if block < 0 or block >= limits[NUM_BLOCKS]:
            return NO_BLOCK
    return FINE


@compiled(types.void(_vector, _vector, _vector, _i64))
def _describe(task, request, limits, num_workers):
    layer = limits[LAYERS] + 8 * LAYER_FIELDS * request[REQUEST_LAYER]
    window, sink_tokens = load_plain(layer + 8 * WINDOW), load_plain(layer + 8 * SINK_TOKENS)
    context_len, q_len = request[REQUEST_CONTEXT_LEN], request[REQUEST_Q_LEN]
    sink_stop, first = visible_tokens(context_len, q_len, window, sink_tokens)
    task[LAYER] = request[REQUEST_LAYER]
    task[CONTEXT_LEN] = context_len
    task[Q_LEN] = q_len
    task[NUM_PARTS] = count_parts(context_len, q_len, window, sink_tokens, num_workers)
    task[ATTEMPTS] = 0
    task[TOKENS] = context_len - first + sink_stop


@compiled(_i64(_i64, _i64, _table, _table, _table, _vector, _table, _table, _vector, _i64))
def enqueue(model, count, requests, models, tasks, epochs, turns, queues, counters, num_workers):
    """Puts the first `count` requests of a model into its queue: all of them, or none.

    Returns 0, or (row << ERROR_BITS) | what is wrong with the first row that is.
    """
    num_slots = queues.shape[1]
    limits = models[model]
    error = 0
    num_taken = 0
    for row in range(count):
        request = requests[row]
        slot = request[REQUEST_SLOT]
        task = model * num_slots + slot
        position = tasks[task, POSITION] if 0 <= slot < num_slots else FREE
        wrong = _request_error(request, limits, num_slots, position)
        if wrong:
            error = row << ERROR_BITS | wrong
            break
        # At once, so that a slot that stands there twice is found.
        tasks[task, POSITION] = WAITING
        num_taken += 1
    if error:
        for row in range(num_taken):
            tasks[model * num_slots + requests[row, REQUEST_SLOT], POSITION] = FREE
        return error
    for row in range(count):
        task = model * num_slots + requests[row, REQUEST_SLOT]
        _describe(tasks[task], requests[row], limits, num_workers)
        tasks[task, EPOCH] = epochs[task]
        t.push(turns, queues, model, task, counters[CLOCK])
        counters[NUM_WAITING] += 1
    return 0


@compiled(types.void(_table, _table, _table, _vector, _vector, _i64, _i64))
def take_back(tasks, turns, queues, cell_tasks, counters, mask, position):
    """A published task waits again, before all others of its model."""
    task = cell_tasks[position & mask]
    model = task // queues.shape[1]
    cell_tasks[position & mask] = -1
    tasks[task, POSITION] = WAITING
    turns[model, t.PUBLISHED] -= tasks[task, TOKENS]
    t.push_front(turns, queues, model, task)
    counters[NUM_WAITING] += 1


@compiled(types.void(_i64, _i64, _i64, _table, _table, _table, _vector, _vector))
def _call_back(cells, mask, least, tasks, turns, queues, cell_tasks, counters):
    """Unpublishes what nobody began, of models that are ahead of an account that has to wait.

    The latest first, down to the first that a worker is at: all before it were taken too. No more
    than can be published again at once, for workers must not run out of work.
    """
    num_free = mask + 1 - (counters[TAIL] - counters[OLDEST]) - counters[NUM_WAITING]
    if not t.is_ahead(turns, least):
        return
    for position in range(counters[TAIL] - 1, counters[OLDEST] - 1, -1):
        if num_free <= 0:
            break
        task = cell_tasks[position & mask]
        if task < 0:
            continue
        model = task // queues.shape[1]
        if t.account(turns, model) - tasks[task, TOKENS] < least:
            # It would come before those that wait anyway.
            continue
        cell = ring.cell_of(cells, mask, position)
        if not ring.withdraw(cell, position, tasks[task, NUM_PARTS]):
            break
        take_back(tasks, turns, queues, cell_tasks, counters, mask, position)
        num_free -= 1


@compiled(types.void(_i64, _i64, _i64, _table, _vector, _table, _table, _vector, _vector))
def flush(control, cells, mask, tasks, epochs, turns, queues, cell_tasks, counters):
    """Publishes what waits, as far as ring cells are free, and wakes workers for it.

    Models take turns. cell_tasks: int64 [mask + 1], the task that a cell belongs to, or -1.
    """
    num_slots = queues.shape[1]
    num_parts = 0
    model = t.next_model(turns)
    if model != t.NOBODY:
        _call_back(cells, mask, t.account(turns, model), tasks, turns, queues, cell_tasks, counters)
    while model != t.NOBODY:
        position = counters[TAIL]
        if position - counters[OLDEST] > mask:
            break
        task = t.pop(turns, queues, model)
        counters[NUM_WAITING] -= 1
        if tasks[task, EPOCH] != epochs[task]:
            tasks[task, POSITION] = FREE
            counters[NUM_DROPPED] += 1
        else:
            cell = ring.cell_of(cells, mask, position)
            store_plain(cell + _CELL_MODEL, model)
            store_plain(cell + _CELL_SLOT, task % num_slots)
            store_plain(cell + _CELL_LAYER, tasks[task, LAYER])
            store_plain(cell + _CELL_CONTEXT_LEN, tasks[task, CONTEXT_LEN])
            store_plain(cell + _CELL_Q_LEN, tasks[task, Q_LEN])
            cell_tasks[position & mask] = task
            tasks[task, POSITION] = position
            turns[model, t.PUBLISHED] += tasks[task, TOKENS]
            counters[TAIL] = position + 1
            ring.publish(cell, position, tasks[task, NUM_PARTS])
            num_parts += tasks[task, NUM_PARTS]
        model = t.next_model(turns)
    if num_parts > 0:
        num_sleepers = ring.count_sleepers(control)
        if num_sleepers:
            ring.wake(control, min(num_parts, num_sleepers))


@compiled(_i64(_i64, _i64, _i64, _table, _vector, _table, _vector, _vector, _table))
def gather(control, cells, mask, tasks, epochs, turns, cell_tasks, counters, results):
    """Takes all results that are there and frees their slots; how many rows of `results` it wrote.

    Results of slots that were released since are dropped.
    """
    progress = ring.read_progress(control)
    if progress == counters[PROGRESS_SEEN]:
        return 0
    counters[PROGRESS_SEEN] = progress
    num_slots = tasks.shape[0] // turns.shape[0]
    count = 0
    for position in range(counters[OLDEST], counters[TAIL]):
        task = cell_tasks[position & mask]
        if task < 0:
            continue
        status = ring.read_result(ring.cell_of(cells, mask, position), position)
        if status < 0:
            continue
        turn = turns[task // num_slots]
        counters[CLOCK] = max(counters[CLOCK], turn[t.SERVED])
        turn[t.SERVED] += tasks[task, TOKENS]
        turn[t.PUBLISHED] -= tasks[task, TOKENS]
        cell_tasks[position & mask] = -1
        tasks[task, POSITION] = FREE
        if tasks[task, EPOCH] != epochs[task]:
            counters[NUM_DROPPED] += 1
            continue
        counters[NUM_DONE] += 1
        results[count, RESULT_MODEL] = task // num_slots
        results[count, RESULT_SLOT] = task % num_slots
        results[count, RESULT_LAYER] = tasks[task, LAYER]
        results[count, RESULT_STATUS] = status
        results[count, RESULT_EPOCH] = tasks[task, EPOCH]
        count += 1
    while counters[OLDEST] < counters[TAIL] and cell_tasks[counters[OLDEST] & mask] < 0:
        counters[OLDEST] += 1
    store_release(control + _CONTROL_OLDEST, counters[OLDEST])
    return count


@compiled(_i64(_i64, _i64, _vector, _vector))
def count_unfinished(cells, mask, cell_tasks, counters):
    """Published tasks that have no result yet."""
    count = 0
    for position in range(counters[OLDEST], counters[TAIL]):
        if cell_tasks[position & mask] >= 0:
            cell = ring.cell_of(cells, mask, position)
            count += ring.read_result(cell, position) < 0
    return count


@compiled(types.void(_i64, _table, _vector, _table, _table, _vector))
def drop_released(model, tasks, epochs, turns, queues, counters):
    """Of a model's tasks that wait, those whose slots were released are gone."""
    for _ in range(turns[model, t.NUM_WAITING]):
        task = t.pop(turns, queues, model)
        if tasks[task, EPOCH] == epochs[task]:
            t.push(turns, queues, model, task, 0)
        else:
            tasks[task, POSITION] = FREE
            counters[NUM_WAITING] -= 1
            counters[NUM_DROPPED] += 1
