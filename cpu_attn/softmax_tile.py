"""Online softmax of one row of a tile of scores (Milakov and Gimelshein, 2018), as an intrinsic.

Scores are taken times log2(e), so weights are powers of two: the running maximum is in that unit.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.tile_loops import Multiply, literal_values, tile_signature
from cpu_attn.vector_ir import I32, VectorBuilder

LOWEST = -3.0e38
"""The maximum of no scores."""


@intrinsic(prefer_literal=True)
def softmax_row(
    typing_context,
    scores,
    first,
    stop,
    sink,
    state,
    acc,
    key_scales,
    value_scales,
    scale,
    head_dim,
    kv,
    way,
):
    """Scores become weights; `acc` and the sum are rescaled where the maximum grew.

    Tokens first .. stop - 1 and those before `sink` and `stop` count, others get weight 0. `state`
    holds the maximum and the sum. Weights take the place of scores; for DOT they are bfloat16.
    """
    signature = tile_signature(8, (head_dim, kv, way), types.float32)
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        dim, kv_value, way_value = literal_values(signature, 3)
        with_scales = kv_value == Element.INT8
        v = VectorBuilder(builder, isa.active().lanes)
        scores, first, stop, sink, state, acc, key_scales, value_scales, scale = args[:9]
        way = Multiply(way_value)
        step = 4 * v.lanes
        visible = _visible(v, first, stop, sink)
        logits = []
        scale_vector = v.splat(scale)
        for index, inside in enumerate(visible):
            score = builder.fmul(v.load(v.offset(scores, step * index), v.f32s), scale_vector)
            if with_scales:
                key_scale = v.load(v.offset(key_scales, step * index), v.f32s)
                score = builder.fmul(score, key_scale)
            # Selected, not added to: what lies outside may be NaN.
            logits.append(builder.select(inside, score, v.constant(LOWEST)))
        _raise_maximum(v, logits, state, acc, dim)
        maximum = v.splat(v.load_scalar(state))
        total = v.constant(0.0)
        for index, (logit, inside) in enumerate(zip(logits, visible, strict=True)):
            weight = v.exp2(builder.fsub(logit, maximum))
            weight = builder.select(inside, weight, v.constant(0.0))
            if way is Multiply.DOT:
                # The sum is of the weights as they are used, so they add up to 1 in the end.
                rounded = v.round_bfloat16(weight)
                v.store(rounded, v.offset(scores, 2 * v.lanes * index))
                weight = v.widen_bfloat16(rounded)
            total = builder.fadd(total, weight)
            if with_scales:
                value_scale = v.load(v.offset(value_scales, step * index), v.f32s)
                # A slot that nobody wrote may hold a scale of NaN.
                scaled = builder.fmul(weight, value_scale)
                weight = builder.select(inside, scaled, v.constant(0.0))
            if way is not Multiply.DOT:
                v.store(weight, v.offset(scores, step * index))
        sum_address = v.offset(state, 4)
        new_sum = builder.fadd(v.load_scalar(sum_address), v.reduce_sum(total))
        v.store(new_sum, sum_address)

    return signature, codegen


def _visible(v: VectorBuilder, first: Any, stop: Any, sink: Any) -> list[Any]:
    """For each vector of the tile, which of its tokens count."""
    b = v.b
    first, stop, sink = (v.splat(b.trunc(x, I32)) for x in (first, stop, sink))
    masks = []
    for start in range(0, TILE_TOKENS, v.lanes):
        token = b.add(v.lane_numbers(), v.int_constant(start))
        in_window = b.icmp_signed(">=", token, first)
        in_sink = b.icmp_signed("<", token, sink)
        before_stop = b.icmp_signed("<", token, stop)
        masks.append(b.and_(b.or_(in_window, in_sink), before_stop))
    return masks


def _raise_maximum(v: VectorBuilder, logits: list[Any], state: Any, acc: Any, dim: int) -> None:
    """Where a logit is above the running maximum: takes it, and shrinks what was summed."""
    b = v.b
    tops = list(logits)
    while len(tops) > 1:
        tops = [v.maximum(a, c) for a, c in zip(tops[::2], tops[1::2], strict=True)]
    top = v.reduce_max(tops[0])
    old = v.load_scalar(state)
    with b.if_then(b.fcmp_ordered(">", top, old), likely=False):
        shrink = v.exp2(v.splat(b.fsub(old, top)))
        for index in range(dim // v.lanes):
            address = v.offset(acc, 4 * v.lanes * index)
            v.store(b.fmul(v.load(address, v.f32s), shrink), address)
        sum_address = v.offset(state, 4)
        first_lane = b.extract_element(shrink, ir.Constant(I32, 0))
        v.store(b.fmul(v.load_scalar(sum_address), first_lane), sum_address)
        v.store(top, state)


@intrinsic(prefer_literal=True)
def clear_row(typing_context, acc, state, maximum, total, head_dim):
    """An accumulator row of zeros with a running maximum and sum."""
    signature = tile_signature(2, (head_dim,), types.float32, types.float32)
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        (dim,) = literal_values(signature, 1)
        v = VectorBuilder(builder, isa.active().lanes)
        for index in range(dim // v.lanes):
            v.store(v.constant(0.0), v.offset(args[0], 4 * v.lanes * index))
        v.store(args[2], args[1])
        v.store(args[3], v.offset(args[1], 4))

    return signature, codegen
