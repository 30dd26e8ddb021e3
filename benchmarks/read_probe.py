"""The fastest reader of memory that was found: what attention over keys and values is held to.

It adds up 64-byte lines from a few places of a range at once, as many loads in flight as a core
has, and does nothing else. Written for the same vector path as the attention kernels.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cpu_attn._jit import c_callback
from cpu_attn.memory import take_number
from cpu_attn.thread_team import ThreadTeam

NUM_STREAMS = 4
LINES_PER_TURN = 4
"""Of each stream."""
LINE_BYTES = 64
GRAIN_BYTES = NUM_STREAMS * LINES_PER_TURN * LINE_BYTES
"""A range is read in whole grains; what is left at its end is not."""

PIECE_BYTES = 4 << 20
"""What a thread of a team takes at a time."""
# What a team's task holds, int64; the last two are addresses of the first two.
_NEXT_PIECE, _SUM, _NUM_PIECES, _ADDRESS, _COUNTER, _TOTAL, _NUM_FIELDS = range(7)

_LANES = 16
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LINE = ir.VectorType(_I32, _LANES)


@intrinsic  # type: ignore[untyped-decorator]
def _sum_lines(typing_context: Any, address: Any, num_bytes: Any) -> Any:
    """Sum, modulo 2**32, of the int32 in a range of whole grains."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start, num_bytes = args
        stream_bytes = builder.udiv(num_bytes, ir.Constant(_I64, NUM_STREAMS))
        turn_bytes = ir.Constant(_I64, LINES_PER_TURN * LINE_BYTES)
        zero = ir.Constant(_LINE, [0] * _LANES)
        # Sums of their own for each line of a turn, so that no load waits for another's addition.
        sums = [
            cgutils.alloca_once_value(builder, zero) for _ in range(NUM_STREAMS * LINES_PER_TURN)
        ]
        with cgutils.for_range(builder, builder.udiv(stream_bytes, turn_bytes)) as loop:
            here = builder.add(start, builder.mul(loop.index, turn_bytes))
            for number, total in enumerate(sums):
                stream, line = divmod(number, LINES_PER_TURN)
                place = builder.add(here, builder.mul(stream_bytes, ir.Constant(_I64, stream)))
                place = builder.add(place, ir.Constant(_I64, LINE_BYTES * line))
                value = builder.load(builder.inttoptr(place, _LINE.as_pointer()))
                value.align = 4
                builder.store(builder.add(builder.load(total), value), total)
        everything = zero
        for total in sums:
            everything = builder.add(everything, builder.load(total))
        lanes = [builder.extract_element(everything, ir.Constant(_I32, i)) for i in range(_LANES)]
        result = lanes[0]
        for lane in lanes[1:]:
            result = builder.add(result, lane)
        return result

    return types.uint32(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _add(typing_context: Any, address: Any, number: Any) -> Any:
    """Adds to the int64 at an address that other threads add to."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@cache
def read_probe() -> Any:
    """A cfunc `uint32(int64 address, int64 num_bytes)` that reads a range in one thread.

    Its `.address` may be called from any thread, its `.ctypes` lets go of the interpreter's lock.
    Returns the sum modulo 2**32 of the int32 read: all of the range if it is a multiple of
    GRAIN_BYTES. Addresses need to be multiples of 4.
    """

    def read(address: int, num_bytes: int) -> Any:
        return _sum_lines(address, num_bytes // GRAIN_BYTES * GRAIN_BYTES)

    return c_callback(types.uint32(types.int64, types.int64))(read)


@cache
def _shared_read_probe() -> Any:
    """The same as a cfunc `void(int64_t *task)` that the threads of a team call together."""

    def read(task: Any) -> None:
        total = np.uint32(0)
        piece = take_number(task[_COUNTER])
        while piece < task[_NUM_PIECES]:
            total += _sum_lines(task[_ADDRESS] + piece * PIECE_BYTES, PIECE_BYTES)
            piece = take_number(task[_COUNTER])
        # Kept somewhere, or the compiler could leave the reads out.
        _add(task[_TOTAL], np.int64(total))

    return c_callback(types.void(types.CPointer(types.int64)))(read)


class TeamReader:
    """Reads a range once a run, in pieces that the threads of a team share out."""

    def __init__(self, memory: NDArray[np.uint8], team: ThreadTeam) -> None:
        """`memory`: a multiple of PIECE_BYTES."""
        if memory.nbytes % PIECE_BYTES:
            raise ValueError(f"memory of {memory.nbytes} bytes: a multiple of {PIECE_BYTES}")
        self.num_bytes = memory.nbytes
        self._memory, self._team = memory, team
        self._task = np.zeros(_NUM_FIELDS, dtype=np.int64)
        self._task[_NUM_PIECES] = memory.nbytes // PIECE_BYTES
        self._task[_ADDRESS] = memory.ctypes.data
        self._task[_COUNTER] = self._task.ctypes.data + 8 * _NEXT_PIECE
        self._task[_TOTAL] = self._task.ctypes.data + 8 * _SUM

    def run(self) -> int:
        """The sum modulo 2**32 of the int32 read."""
        self._task[[_NEXT_PIECE, _SUM]] = 0
        self._team.run(_shared_read_probe().address, self._task.ctypes.data)
        return int(self._task[_SUM]) % 2**32
