"""Weighted sums of a run of values, as numba intrinsics: rows of weights, tokens of one head."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.tile_loops import (
    LOW_WEIGHTS_OFFSET,
    SCORE_ROW_BYTES,
    UNIT_TOKENS,
    Multiply,
    for_row_groups,
    literal_values,
    tile_signature,
    value_order,
)
from cpu_attn.vector_elements import load_elements, load_order, reorder, store_elements
from cpu_attn.vector_ir import I16, I32, I64, VectorBuilder


@intrinsic(prefer_literal=True)
def weigh_unit(
    typing_context, weights, values, first, stop, acc, num_rows, ahead, zeros, kv, head_dim, way
):
    """acc[r] += sum of weights[r, t] * values[t] over tokens first .. stop - 1 of a unit.

    Prefetches a unit's bytes at `ahead`. Values outside first .. stop - 1 are not used, whatever
    they hold; `zeros` is a row of zeros that stands in for one where tokens go in pairs.
    """
    signature = tile_signature(8, (kv, head_dim, way))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        kv_value, dim, way_value = literal_values(signature, 3)
        v = VectorBuilder(builder, isa.active().lanes)
        way = Multiply(way_value)
        weights, values, first, stop, acc, num_rows, ahead, zeros = args[:8]
        tile = _ValueTile(v, Element(kv_value), dim, way, first, stop, zeros)

        def emit(count: int, row: Any, is_first: Any) -> None:
            target = builder.select(is_first, ahead, values)
            tile.emit(
                count,
                v.at(weights, row, SCORE_ROW_BYTES),
                values,
                v.at(acc, row, 4 * dim),
                target,
            )

        for_row_groups(builder, num_rows, emit)

    return signature, codegen


class _ValueTile:
    """Emits a few rows: their sums over some columns stay in registers while tokens go by."""

    def __init__(
        self,
        v: VectorBuilder,
        kv: Element,
        head_dim: int,
        way: Multiply,
        first: Any,
        stop: Any,
        zeros: Any,
    ) -> None:
        self._v = v
        self._kv = kv
        self._way = way
        self._head_dim = head_dim
        self._row_bytes = head_dim * kv.num_bytes
        self._first, self._stop, self._zeros = first, stop, zeros
        self._tokens_at_once = 1 if way is Multiply.FMA else 2

    def emit(self, num_rows: int, weights: Any, values: Any, acc: Any, ahead: Any) -> None:
        v = self._v
        most = max(2, isa.active().num_sums // num_rows) * v.lanes
        columns = [
            (start, min(most, self._head_dim - start)) for start in range(0, self._head_dim, most)
        ]
        for start, count in columns:
            places = [
                v.offset(acc, 4 * (row * self._head_dim + start + v.lanes * i))
                for row in range(num_rows)
                for i in range(count // v.lanes)
            ]
            sums = [cgutils.alloca_once_value(v.b, v.load(place, v.f32s)) for place in places]
            # Each group of columns asks for its share of the lines.
            share = UNIT_TOKENS * self._row_bytes * start // self._head_dim
            self._tokens(num_rows, weights, values, sums, (start, count), v.offset(ahead, share))
            for place, total in zip(places, sums, strict=True):
                v.store(v.b.load(total), place)

    def _tokens(
        self,
        num_rows: int,
        weights: Any,
        values: Any,
        sums: list[Any],
        columns: tuple[int, int],
        ahead: Any,
    ) -> None:
        v, b = self._v, self._v.b
        start, count = columns
        step = ir.Constant(I64, self._tokens_at_once)
        column_bytes = count * self._kv.num_bytes
        with cgutils.for_range_slice(b, self._first, self._stop, step, intp=I64) as (token, _):
            lines = self._tokens_at_once * column_bytes
            place = v.at(ahead, token, column_bytes)
            for line in range(0, lines, 64):
                v.prefetch(v.offset(place, line))
            rows = [
                v.offset(row, start * self._kv.num_bytes) for row in self._value_rows(values, token)
            ]
            vectors = self._load(rows, count)
            per_row = count // v.lanes
            for row in range(num_rows):
                address = v.offset(weights, SCORE_ROW_BYTES * row)
                for factor in self._factors(address, token):
                    for i in range(per_row):
                        slot = sums[row * per_row + i]
                        b.store(self._add(factor, vectors[i], b.load(slot)), slot)

    def _value_rows(self, values: Any, token: Any) -> list[Any]:
        """Addresses of the value rows that go in together."""
        v, b = self._v, self._v.b
        row = v.at(values, token, self._row_bytes)
        if self._way is Multiply.FMA:
            return [row]
        # A last token without a partner is paired with zeros: what follows it may be NaN.
        after = b.add(token, ir.Constant(I64, 1))
        has_partner = b.icmp_signed("<", after, self._stop)
        return [row, b.select(has_partner, v.offset(row, self._row_bytes), self._zeros)]

    def _load(self, rows: list[Any], count: int) -> list[Any]:
        v = self._v
        if self._way is Multiply.FMA:
            return load_elements(v, rows[0], self._kv, count)
        vectors = []
        for start in range(0, count, 2 * v.lanes):
            width = min(2 * v.lanes, count - start)
            kind = ir.VectorType(I16, width)
            a, c = (v.load(v.offset(row, 2 * start), kind) for row in rows)
            for lanes in _unpacking(width, v.lanes):
                vectors.append(v.b.bitcast(v.shuffle(a, c, lanes), v.i32s))
        return vectors

    def _factors(self, weights: Any, token: Any) -> list[Any]:
        """What every lane is multiplied by; two for weights in two parts."""
        v = self._v
        if self._way is Multiply.FMA:
            return [v.splat(v.load_scalar(v.at(weights, token, 4)))]
        pair = v.at(weights, token, 2)
        parts = [v.splat(v.load(pair, I32))]
        if self._way is Multiply.DOT_SPLIT:
            parts.append(v.splat(v.load(v.offset(pair, LOW_WEIGHTS_OFFSET), I32)))
        return parts

    def _add(self, factor: Any, vector: Any, total: Any) -> Any:
        if self._way is Multiply.FMA:
            return self._v.fma(vector, factor, total)
        return self._v.dot_bfloat16(vector, factor, total)


def _unpacking(width: int, lanes: int) -> list[list[int]]:
    """Shuffles of two rows of `width` 16-bit elements into pairs, in LaneOrder.UNPACKED."""
    if width == lanes:
        return [[x for i in range(width) for x in (i, width + i)]]
    groups = range(0, width, 8)
    return [
        [x for g in groups for i in range(g + half, g + half + 4) for x in (i, width + i)]
        for half in (0, 4)
    ]


@intrinsic(prefer_literal=True)
def store_output(typing_context, acc, out, scale, io, kv, head_dim, way):
    """One accumulator row times `scale` (float32) to `io` elements in order."""
    signature = tile_signature(2, (io, kv, head_dim, way), types.float32)
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        io_value, kv_value, dim, way_value = literal_values(signature, 4)
        v = VectorBuilder(builder, isa.active().lanes)
        element = Element(io_value)
        scale = v.splat(args[2])
        vectors = [
            builder.fmul(v.load(v.offset(args[0], 4 * v.lanes * i), v.f32s), scale)
            for i in range(dim // v.lanes)
        ]
        order = value_order(Element(kv_value), Multiply(way_value))
        store_elements(v, reorder(v, vectors, order, load_order(element)), args[1], element)

    return signature, codegen
