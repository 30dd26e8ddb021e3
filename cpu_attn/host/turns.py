"""Whose task is published next, compiled: models take turns by the tokens that they attend to.

Each model has a queue of tasks that wait, and an account of tokens: those of tasks that came back
(SERVED) and those of tasks that are published (PUBLISHED). The model with the least sum publishes
next, so models that always have work attend to equally many tokens, however long their contexts
are. Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): the clock is where the account
stood of whose task came back last; who had nothing to publish for a while goes on from the clock,
not from where its own account stood, and so keeps no credit for the time when it wanted nothing.
"""

from numba import types

from cpu_attn._jit import compiled

# Columns of `turns`, int64 [MAX_MODELS, TURN_FIELDS].
IS_OPEN = 0
"""1 where tasks may be published; else they wait."""
HEAD, NUM_WAITING = 1, 2
"""Of the model's row of `queues`, int64 [MAX_MODELS, num_slots]: task numbers in a circle."""
SERVED, PUBLISHED = 3, 4
TURN_FIELDS = 5

NOBODY = -1

_i64 = types.int64
_vector, _table = types.int64[::1], types.int64[:, ::1]


@compiled(types.void(_table, _table, _i64, _i64, _i64))
def push(turns, queues, model, task, clock):
    """Puts a task behind those of its model that wait."""
    turn = turns[model]
    if turn[NUM_WAITING] == 0:
        turn[SERVED] = max(turn[SERVED], clock - turn[PUBLISHED])
    # A slot is in the queue once at most, so the queue cannot overflow.
    queues[model, (turn[HEAD] + turn[NUM_WAITING]) % queues.shape[1]] = task
    turn[NUM_WAITING] += 1


@compiled(types.void(_table, _table, _i64, _i64))
def push_front(turns, queues, model, task):
    """Puts a task that was published already before those of its model that wait."""
    turn = turns[model]
    turn[HEAD] = (turn[HEAD] - 1) % queues.shape[1]
    queues[model, turn[HEAD]] = task
    turn[NUM_WAITING] += 1


@compiled(_i64(_table, _table, _i64))
def pop(turns, queues, model):
    """Takes the model's first task."""
    turn = turns[model]
    task = queues[model, turn[HEAD]]
    turn[HEAD] = (turn[HEAD] + 1) % queues.shape[1]
    turn[NUM_WAITING] -= 1
    return task


@compiled(_i64(_table, _i64))
def account(turns, model):
    """Tokens that the model attended to, or will, by what is published."""
    return turns[model, SERVED] + turns[model, PUBLISHED]


@compiled(_i64(_table))
def next_model(turns):
    """The open model with tasks that wait and the least account, or NOBODY."""
    chosen = NOBODY
    for model in range(turns.shape[0]):
        if turns[model, IS_OPEN] == 0 or turns[model, NUM_WAITING] == 0:
            continue
        if chosen == NOBODY or account(turns, model) < account(turns, chosen):
            chosen = model
    return chosen


@compiled(types.boolean(_table, _i64))
def is_ahead(turns, least):
    """Whether some model has tasks published and a larger account than `least`."""
    for model in range(turns.shape[0]):
        if turns[model, PUBLISHED] > 0 and account(turns, model) > least:
            return True
    return False
