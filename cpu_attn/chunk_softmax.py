"""Softmax of a tile of attention scores: each row a token with its own visible range of keys."""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from cpu_attn._jit import c_callback
from cpu_attn.element import Element
from cpu_attn.memory import store_f32, take_number
from cpu_attn.vector_elements import load_elements, load_order, store_elements
from cpu_attn.vector_ir import I32, I64, LANES, V_F32, VectorBuilder

CHUNK = 2 * LANES
NUM_FIELDS = 9
_ROWS_PER_ITEM = 16


@intrinsic(prefer_literal=True)
def weights_row(typing_context, scores, first, stop, length, scale, element):
    """Scores become exp(scale * (score - maximum)) at first .. stop - 1 and 0 elsewhere.

    `length` is a multiple of 32. Returns the sum of the weights as they were rounded, so that
    dividing by it leaves them adding up to 1.
    """
    if not isinstance(element, types.IntegerLiteral):
        return None
    signature = types.float32(*([types.int64] * 4), types.float32, element)

    def codegen(context, builder, signature, args):
        kind = Element(signature.args[-1].literal_value)
        v = VectorBuilder(builder)
        scores, first, stop, length, scale = args[:5]
        chunk = ir.Constant(I64, CHUNK)
        one = ir.Constant(I64, 1)
        begin = builder.sdiv(first, chunk)
        end = builder.sdiv(builder.add(stop, ir.Constant(I64, CHUNK - 1)), chunk)
        order = load_order(kind).positions(LANES)
        lanes = [ir.Constant(v.i32s, part) for part in (order[:LANES], order[LANES:])]
        first_lane, stop_lane = (v.splat(builder.trunc(x, I32)) for x in (first, stop))
        lowest, zero = v.constant(-3.0e38), v.constant(0.0)

        def load(index: Any) -> tuple[Any, list[Any], list[Any]]:
            """Address, values and visibility of a chunk."""
            start = builder.mul(index, chunk)
            address = builder.add(scores, builder.mul(start, ir.Constant(I64, kind.num_bytes)))
            base = v.splat(builder.trunc(start, I32))
            inside = []
            for positions in lanes:
                position = builder.add(base, positions)
                not_before = builder.icmp_signed(">=", position, first_lane)
                before_stop = builder.icmp_signed("<", position, stop_lane)
                inside.append(builder.and_(not_before, before_stop))
            return address, load_elements(v, address, kind, CHUNK), inside

        top = cgutils.alloca_once(builder, V_F32)
        builder.store(lowest, top)
        with cgutils.for_range_slice(builder, begin, end, one, intp=I64) as (index, _):
            _, values, inside = load(index)
            for value, visible in zip(values, inside, strict=True):
                masked = builder.select(visible, value, lowest)
                builder.store(v.maximum(masked, builder.load(top)), top)
        maximum = v.splat(builder.fmul(v.reduce_max(builder.load(top)), scale))
        scale_vector = v.splat(scale)
        total = cgutils.alloca_once(builder, V_F32)
        builder.store(zero, total)
        with cgutils.for_range_slice(builder, begin, end, one, intp=I64) as (index, _):
            address, values, inside = load(index)
            weights = []
            for value, visible in zip(values, inside, strict=True):
                weight = v.exp(builder.fsub(builder.fmul(value, scale_vector), maximum))
                weights.append(builder.select(visible, weight, zero))
            store_elements(v, weights, address, kind)
            for weight in load_elements(v, address, kind, CHUNK):
                builder.store(builder.fadd(weight, builder.load(total)), total)
        zeros = [zero, zero]
        chunks = builder.sdiv(length, chunk)
        for from_, to in ((ir.Constant(I64, 0), begin), (end, chunks)):
            with cgutils.for_range_slice(builder, from_, to, one, intp=I64) as (index, _):
                offset = builder.mul(index, ir.Constant(I64, CHUNK * kind.num_bytes))
                store_elements(v, zeros, builder.add(scores, offset), kind)
        return v.reduce_sum(builder.load(total))

    return signature, codegen


@cache
def chunk_softmax_kernel(element: Element) -> Any:
    """A C callback over a task of int64 fields, as in `row_kernels`.

    Fields from 2 on: scores, row length (a multiple of 32), tokens of a tile, keys that the first
    token sees, window, sums (float32, one a row), scale (float64 bits). Row r holds token r modulo
    the tile's tokens; a token sees one key more than the one before it, at most the last `window`.
    """
    kind, size = int(element), element.num_bytes

    def run(task_pointer):
        task = carray(task_pointer, NUM_FIELDS)
        scale = np.float32(task[8:].view(np.float64)[0])
        while True:
            row_0 = take_number(task.ctypes.data) * _ROWS_PER_ITEM
            if row_0 >= task[1]:
                break
            for row in range(row_0, min(row_0 + _ROWS_PER_ITEM, task[1])):
                stop = task[5] + row % task[4]
                first = max(0, stop - task[6])
                scores = task[2] + row * task[3] * size
                total = weights_row(scores, first, stop, task[3], scale, kind)
                store_f32(task[7] + 4 * row, total)

    return c_callback(types.void(types.CPointer(types.int64)))(run)
