"""A row of elements written as another element type, as numba intrinsics."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.tile_loops import literal_values, tile_signature
from cpu_attn.vector_elements import load_elements, load_order, reorder, store_elements
from cpu_attn.vector_ir import F32, I8, VectorBuilder

_LIMIT = 127.0


@intrinsic(prefer_literal=True)
def convert_row(typing_context, source, target, from_element, to_element, length):
    """`length` elements (a multiple of 16) rounded to nearest even; INT8 is for `quantise_row`."""
    signature = tile_signature(2, (from_element, to_element, length))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        from_value, to_value, count = literal_values(signature, 3)
        v = VectorBuilder(builder, isa.active().lanes)
        vectors = load_elements(v, args[0], Element(from_value), count)
        orders = load_order(Element(from_value)), load_order(Element(to_value))
        store_elements(v, reorder(v, vectors, *orders), args[1], Element(to_value))

    return signature, codegen


@intrinsic(prefer_literal=True)
def quantise_row(typing_context, source, target, from_element, length):
    """`length` elements as int8 times the scale given back: the largest size / 127, or 1.

    A row with a NaN or an infinity has a scale of NaN, so that it reads as NaN.
    """
    signature = tile_signature(2, (from_element, length), result=types.float32)
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        from_value, count = literal_values(signature, 2)
        v = VectorBuilder(builder, isa.active().lanes)
        element = Element(from_value)
        vectors = load_elements(v, args[0], element, count)
        scale = _scale(v, vectors)
        order = load_order(Element.INT8)
        for index, vector in enumerate(reorder(v, vectors, load_order(element), order)):
            level = v.round(builder.fdiv(vector, v.splat(scale)))
            level = _within(v, level)
            levels = builder.trunc(builder.fptosi(level, v.i32s), ir.VectorType(I8, v.lanes))
            v.store(levels, v.offset(args[1], v.lanes * index))
        return scale

    return signature, codegen


def _scale(v: VectorBuilder, vectors: list[Any]) -> Any:
    b = v.b
    largest = zero_or_nan = v.constant(0.0)
    for vector in vectors:
        size = b.select(b.fcmp_ordered("<", vector, v.constant(0.0)), b.fneg(vector), vector)
        largest = v.maximum(size, largest)
        # The comparison above passes over NaN.
        zero_or_nan = v.fma(vector, v.constant(0.0), zero_or_nan)
    scale = b.fdiv(v.reduce_max(largest), ir.Constant(F32, _LIMIT))
    is_zero = b.fcmp_ordered("==", scale, ir.Constant(F32, 0.0))
    scale = b.select(is_zero, ir.Constant(F32, 1.0), scale)
    return b.fadd(scale, v.reduce_sum(zero_or_nan))


def _within(v: VectorBuilder, level: Any) -> Any:
    """-127 .. 127, which tiny scales are too coarse to promise; 0 for NaN."""
    b = v.b
    limit = v.constant(_LIMIT)
    level = b.select(b.fcmp_ordered(">", level, limit), limit, level)
    level = b.select(b.fcmp_ordered("<", level, b.fneg(limit)), b.fneg(limit), level)
    return b.select(b.fcmp_ordered("ord", level, level), level, v.constant(0.0))


@intrinsic(prefer_literal=True)
def add_scaled_row(typing_context, source, target, scale, replaces, length):
    """target += source * scale over `length` float32, or target = source * scale if `replaces`."""
    signature = tile_signature(2, (length,), types.float32, types.boolean)
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        (count,) = literal_values(signature, 1)
        v = VectorBuilder(builder, isa.active().lanes)
        scale = v.splat(args[2])
        for start in range(0, count, v.lanes):
            place = v.offset(args[1], 4 * start)
            added = builder.fmul(v.load(v.offset(args[0], 4 * start), v.f32s), scale)
            before = v.load(place, v.f32s)
            # Selected: what was there before need not be a number.
            before = builder.select(args[3], v.constant(0.0), before)
            v.store(builder.fadd(before, added), place)

    return signature, codegen


@intrinsic(prefer_literal=True)
def copy_f32s(typing_context, source, target, length):
    """`length` float32, a multiple of 16."""
    signature = tile_signature(2, (length,))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        (count,) = literal_values(signature, 1)
        v = VectorBuilder(builder, isa.active().lanes)
        for start in range(0, count, v.lanes):
            v.store(v.load(v.offset(args[0], 4 * start), v.f32s), v.offset(args[1], 4 * start))

    return signature, codegen
