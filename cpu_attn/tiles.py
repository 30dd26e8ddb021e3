"""The three inner pieces of attention over one run of tokens, as numba intrinsics.

Addresses are int64. A row is one query head of a KV head's group; `q`, `acc` hold rows of head_dim
float32, `scores` rows of `stride` float32. Query and output share the lane order of
`VectorBuilder.load_elements`, so no permutation is ever needed.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from cpu_attn.element import Element
from cpu_attn.vector_ir import I64, LANES, V_F32, VectorBuilder

_MAX_ACCUMULATORS = 16


def _literals(signature: Any, count: int) -> list[int]:
    return [argument.literal_value for argument in signature.args[-count:]]


def _signature(num_addresses: int, literals: tuple[Any, ...], result: Any = types.void) -> Any:
    if not all(isinstance(literal, types.IntegerLiteral) for literal in literals):
        return None
    return result(*([types.int64] * num_addresses), *literals)


def _row_groups(num_rows: int, head_dim: int) -> list[tuple[int, int]]:
    """(first row, rows) to score together: as many as share registers with sixteen sums."""
    most = 4 if head_dim <= 32 else 2 if head_dim <= 64 else 1
    groups = []
    row = 0
    while row < num_rows:
        count = most
        while count > num_rows - row:
            count //= 2
        groups.append((row, count))
        row += count
    return groups


@intrinsic(prefer_literal=True)
def load_query(typing_context, source, scale, q, element, head_dim):
    """One query row of `element` times `scale` (float32) to float32."""
    if not isinstance(element, types.IntegerLiteral):
        return None
    signature = types.void(types.int64, types.float32, types.int64, element, head_dim)

    def codegen(context, builder, signature, args):
        element_value, dim = _literals(signature, 2)
        v = VectorBuilder(builder)
        scale_vector = v.splat(args[1])
        for index, vector in enumerate(v.load_elements(args[0], Element(element_value), dim)):
            v.store(builder.fmul(vector, scale_vector), v.offset(args[2], 64 * index))

    return signature, codegen


@intrinsic(prefer_literal=True)
def score_tile(typing_context, q, keys, scores, stride, ahead, element, rows, head_dim):
    """Scores of 16 tokens: scores[r, t] = q[r] . keys[t]; touches as many bytes at `ahead`."""
    signature = _signature(5, (element, rows, head_dim))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        element_value, num_rows, dim = _literals(signature, 3)
        kind = Element(element_value)
        v = VectorBuilder(builder)
        q_address, k_address, s_address, row_stride, ahead_address = args[:5]
        row_bytes = dim * kind.num_bytes
        for start, count in _row_groups(num_rows, dim):
            query = {
                (row, i): v.load(v.offset(q_address, 4 * dim * row + 64 * i), V_F32)
                for row in range(start, start + count)
                for i in range(dim // LANES)
            }
            # Sixteen sums at a time go through one reduction: `count` rows of 16 / count tokens.
            tokens_at_once = LANES // count
            for base in range(0, LANES, tokens_at_once):
                sums: dict[tuple[int, int], Any] = {}
                for token in range(base, base + tokens_at_once):
                    if start == 0:
                        for line in range(0, row_bytes, 64):
                            v.prefetch(v.offset(ahead_address, row_bytes * token + line))
                    key = v.load_elements(v.offset(k_address, row_bytes * token), kind, dim)
                    for row in range(start, start + count):
                        total = builder.fmul(query[row, 0], key[0])
                        for i in range(1, dim // LANES):
                            total = v.fma(query[row, i], key[i], total)
                        sums[row, token] = total
                reduced = v.sum_each([sums[place] for place in sorted(sums)])
                for index in range(count):
                    place = builder.mul(row_stride, ir.Constant(I64, 4 * (start + index)))
                    address = v.offset(builder.add(s_address, place), 4 * base)
                    v.store_lanes(reduced, index * tokens_at_once, tokens_at_once, address)

    return signature, codegen


@intrinsic(prefer_literal=True)
def softmax_row(typing_context, scores, first, stop, num_vectors, state, acc, head_dim):
    """Online softmax of one row: scores become weights, `acc` is rescaled to the new maximum.

    Tokens outside first .. stop - 1 get weight 0. `state` holds the running maximum and sum. There
    must be at least one token inside.
    """
    if not isinstance(head_dim, types.IntegerLiteral):
        return None
    signature = types.void(*([types.int64] * 6), head_dim)

    def codegen(context, builder, signature, args):
        (dim,) = _literals(signature, 1)
        v = VectorBuilder(builder)
        s_address, first, stop, num_vectors, state, acc = args[:6]
        first32, stop32 = (v.splat(builder.trunc(x, ir.IntType(32))) for x in (first, stop))
        lowest = v.constant(-3.0e38)
        top = cgutils.alloca_once_value(builder, lowest)

        def vector_address(index):
            return builder.add(s_address, builder.mul(index, ir.Constant(I64, 64)))

        with cgutils.for_range(builder, num_vectors, intp=I64) as loop:
            base = v.splat(
                builder.trunc(builder.mul(loop.index, ir.Constant(I64, LANES)), ir.IntType(32))
            )
            token = builder.add(base, v.lane_numbers())
            inside = builder.and_(
                builder.icmp_signed(">=", token, first32), builder.icmp_signed("<", token, stop32)
            )
            address = vector_address(loop.index)
            # Selected, not added to: what lies outside may be NaN.
            masked = builder.select(inside, v.load(address, V_F32), lowest)
            v.store(masked, address)
            builder.store(v.maximum(masked, builder.load(top)), top)
        old_max = v.load_scalar(state)
        block_max = v.reduce_max(builder.load(top))
        new_max = builder.select(builder.fcmp_ordered(">", block_max, old_max), block_max, old_max)
        new_max_vector = v.splat(new_max)
        total = cgutils.alloca_once_value(builder, v.constant(0.0))
        with cgutils.for_range(builder, num_vectors, intp=I64) as loop:
            address = vector_address(loop.index)
            weight = v.exp(builder.fsub(v.load(address, V_F32), new_max_vector))
            v.store(weight, address)
            builder.store(builder.fadd(weight, builder.load(total)), total)
        correction_vector = v.exp(v.splat(builder.fsub(old_max, new_max)))
        correction = builder.extract_element(correction_vector, ir.Constant(ir.IntType(32), 0))
        old_sum = v.load_scalar(v.offset(state, 4))
        new_sum = builder.fadd(builder.fmul(old_sum, correction), v.reduce_sum(builder.load(total)))
        v.store(new_max, state)
        v.store(new_sum, v.offset(state, 4))
        for index in range(dim // LANES):
            address = v.offset(acc, 64 * index)
            v.store(builder.fmul(v.load(address, V_F32), correction_vector), address)

    return signature, codegen


@intrinsic(prefer_literal=True)
def weigh_values(
    typing_context, weights, stride, values, first, stop, acc, ahead, element, rows, head_dim
):
    """acc[r] += sum of weights[r, t] * values[t] over tokens first .. stop - 1."""
    signature = _signature(7, (element, rows, head_dim))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        element_value, num_rows, dim = _literals(signature, 3)
        kind = Element(element_value)
        v = VectorBuilder(builder)
        w_address, stride, v_address, first, stop, acc, ahead = args[:7]
        row_bytes, per_row = dim * kind.num_bytes, dim // LANES
        rows_at_once = max(1, _MAX_ACCUMULATORS // per_row)
        for start in range(0, num_rows, rows_at_once):
            some_rows = range(start, min(num_rows, start + rows_at_once))
            places = [
                (row, i, v.offset(acc, 4 * dim * row + 64 * i))
                for row in some_rows
                for i in range(per_row)
            ]
            sums = {
                (row, i): cgutils.alloca_once_value(builder, v.load(address, V_F32))
                for row, i, address in places
            }
            with cgutils.for_range_slice(builder, first, stop, ir.Constant(I64, 1), intp=I64) as (
                token,
                _,
            ):
                token_offset = builder.mul(token, ir.Constant(I64, row_bytes))
                if start == 0:
                    for line in range(0, row_bytes, 64):
                        v.prefetch(v.offset(builder.add(ahead, token_offset), line))
                value = v.load_elements(builder.add(v_address, token_offset), kind, dim)
                for row in some_rows:
                    place = builder.add(builder.mul(stride, ir.Constant(I64, row)), token)
                    address = builder.add(w_address, builder.mul(place, ir.Constant(I64, 4)))
                    weight = v.splat(v.load_scalar(address))
                    for i in range(per_row):
                        slot = sums[row, i]
                        builder.store(v.fma(weight, value[i], builder.load(slot)), slot)
            for row, i, address in places:
                v.store(builder.load(sums[row, i]), address)

    return signature, codegen


@intrinsic(prefer_literal=True)
def store_output(typing_context, acc, scale, out, element, head_dim):
    """One row of `acc` times `scale` (float32) to `element`."""
    if not isinstance(element, types.IntegerLiteral):
        return None
    signature = types.void(types.int64, types.float32, types.int64, element, head_dim)

    def codegen(context, builder, signature, args):
        element_value, dim = _literals(signature, 2)
        v = VectorBuilder(builder)
        scale_vector = v.splat(args[1])
        vectors = [
            builder.fmul(v.load(v.offset(args[0], 64 * i), V_F32), scale_vector)
            for i in range(dim // LANES)
        ]
        v.store_elements(vectors, args[2], Element(element_value))

    return signature, codegen
