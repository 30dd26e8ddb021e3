"""What a decoder layer does to one row between its matrix products, as numba intrinsics.

Addresses are int64, lengths are elements. Arithmetic is float32; results are rounded once.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from cpu_attn.element import Element
from cpu_attn.vector_elements import load_elements, store_elements
from cpu_attn.vector_ir import F32, I64, LANES, V_F32, VectorBuilder

_CHUNK = 2 * LANES


def _chunk_address(builder: Any, base: Any, index: Any, element: Element) -> Any:
    return builder.add(base, builder.mul(index, ir.Constant(I64, _CHUNK * element.num_bytes)))


def _reciprocal_root_mean_square(v: VectorBuilder, total: Any, length: Any, eps: Any) -> Any:
    """1 / sqrt(total / length + eps) in every lane."""
    b = v.b
    mean = b.fdiv(total, b.sitofp(length, F32))
    root = b.call(
        b.module.declare_intrinsic("llvm.sqrt", [F32]),
        [b.fadd(mean, eps)],
    )
    return v.splat(b.fdiv(ir.Constant(F32, 1.0), root))


@intrinsic(prefer_literal=True)
def add_norm_row(typing_context, x, delta, total, weight, out, length, eps, adds, element):
    """out = RMSNorm(total) * weight, where total = x + delta if `adds`, and is x itself if not.

    The sum is rounded to the element type before it is normalised, as the separate operations do.
    """
    if not isinstance(element, types.IntegerLiteral):
        return None
    signature = types.void(*([types.int64] * 6), types.float32, adds, element)

    def codegen(context, builder, signature, args):
        with_sum, element_value = (a.literal_value for a in signature.args[-2:])
        kind = Element(element_value)
        v = VectorBuilder(builder)
        x, delta, total, weight, out, length, eps = args[:7]
        num_chunks = builder.udiv(length, ir.Constant(I64, _CHUNK))
        source = total if with_sum else x
        squares = [cgutils.alloca_once(builder, V_F32) for _ in range(2)]
        for square in squares:
            builder.store(v.constant(0.0), square)
        with cgutils.for_range(builder, num_chunks, intp=I64) as loop:
            place = _chunk_address(builder, source, loop.index, kind)
            if with_sum:
                a = load_elements(v, _chunk_address(builder, x, loop.index, kind), kind, _CHUNK)
                d = load_elements(v, _chunk_address(builder, delta, loop.index, kind), kind, _CHUNK)
                sums = [builder.fadd(p, q) for p, q in zip(a, d, strict=True)]
                store_elements(v, sums, place, kind)
            values = load_elements(v, place, kind, _CHUNK)
            for value, square in zip(values, squares, strict=True):
                builder.store(v.fma(value, value, builder.load(square)), square)
        both = builder.fadd(builder.load(squares[0]), builder.load(squares[1]))
        factor = _reciprocal_root_mean_square(v, v.reduce_sum(both), length, eps)
        with cgutils.for_range(builder, num_chunks, intp=I64) as loop:
            values = load_elements(
                v, _chunk_address(builder, source, loop.index, kind), kind, _CHUNK
            )
            weights = load_elements(
                v, _chunk_address(builder, weight, loop.index, kind), kind, _CHUNK
            )
            scaled = [
                builder.fmul(builder.fmul(value, factor), w)
                for value, w in zip(values, weights, strict=True)
            ]
            store_elements(v, scaled, _chunk_address(builder, out, loop.index, kind), kind)

    return signature, codegen


@intrinsic(prefer_literal=True)
def rotate_head(typing_context, head, weight, cos, signed_sin, eps, norms, element, head_dim):
    """RMSNorm of one head if `norms`, then rotation by halves, in place."""
    if not isinstance(head_dim, types.IntegerLiteral):
        return None
    signature = types.void(*([types.int64] * 4), types.float32, norms, element, head_dim)

    def codegen(context, builder, signature, args):
        with_norm, element_value, dim = (a.literal_value for a in signature.args[-3:])
        kind = Element(element_value)
        v = VectorBuilder(builder)
        head, weight, cos, signed_sin, eps = args[:5]
        values = load_elements(v, head, kind, dim)
        if with_norm:
            squares = builder.fmul(values[0], values[0])
            for value in values[1:]:
                squares = v.fma(value, value, squares)
            length = ir.Constant(I64, dim)
            factor = _reciprocal_root_mean_square(v, v.reduce_sum(squares), length, eps)
            weights = load_elements(v, weight, kind, dim)
            values = [
                builder.fmul(builder.fmul(value, factor), w)
                for value, w in zip(values, weights, strict=True)
            ]
        half = len(values) // 2
        swapped = values[half:] + values[:half]
        cosines = load_elements(v, cos, kind, dim)
        sines = load_elements(v, signed_sin, kind, dim)
        rotated = [
            v.fma(value, c, builder.fmul(other, s))
            for value, other, c, s in zip(values, swapped, cosines, sines, strict=True)
        ]
        store_elements(v, rotated, head, kind)

    return signature, codegen


@intrinsic(prefer_literal=True)
def gated_silu_row(typing_context, gate, up, out, length, element):
    """out = silu(gate) * up."""
    if not isinstance(element, types.IntegerLiteral):
        return None
    signature = types.void(*([types.int64] * 4), element)

    def codegen(context, builder, signature, args):
        kind = Element(signature.args[-1].literal_value)
        v = VectorBuilder(builder)
        gate, up, out, length = args[:4]
        num_chunks = builder.udiv(length, ir.Constant(I64, _CHUNK))
        one, zero = v.constant(1.0), v.constant(0.0)
        with cgutils.for_range(builder, num_chunks, intp=I64) as loop:
            gates = load_elements(v, _chunk_address(builder, gate, loop.index, kind), kind, _CHUNK)
            ups = load_elements(v, _chunk_address(builder, up, loop.index, kind), kind, _CHUNK)
            results = []
            for g, u in zip(gates, ups, strict=True):
                positive = builder.fcmp_ordered(">=", g, zero)
                # e**-|g| never overflows; the two signs of g share it.
                small = v.exp(builder.select(positive, builder.fsub(zero, g), g))
                numerator = builder.select(positive, g, builder.fmul(g, small))
                silu = builder.fdiv(numerator, builder.fadd(one, small))
                results.append(builder.fmul(silu, u))
            store_elements(v, results, _chunk_address(builder, out, loop.index, kind), kind)

    return signature, codegen
