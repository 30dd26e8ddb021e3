"""Weighted sums of a run of values, as numba intrinsics: rows of weights, tokens of one head."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.tile_loops import (
    PIECE_TOKENS,
    SCORE_ROW_BYTES,
    Multiply,
    emit_prefetches,
    for_row_groups,
    literal_values,
    tile_signature,
    value_order,
)
from cpu_attn.vector_elements import load_elements, load_order, reorder, store_elements
from cpu_attn.vector_ir import I16, I32, I64, VectorBuilder


@intrinsic(prefer_literal=True)
def weigh_unit(
    typing_context, weights, walk, first, stop, acc, num_rows, idle_walk, zeros, kv, head_dim, way
):
    """acc[r] += sum of weights[r, t] * values[t] over tokens first .. stop - 1 of a unit.

    `walk` is the address of the entry of the unit's first piece. Values outside first .. stop - 1
    are not used, whatever they hold: `zeros`, a row of zeros, stands in for them. `idle_walk` leads
    to memory that is in the cache.
    """
    signature = tile_signature(8, (kv, head_dim, way))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        kv_value, dim, way_value = literal_values(signature, 3)
        v = VectorBuilder(builder, isa.active().lanes)
        weights, walk, first, stop, acc, num_rows, idle_walk, zeros = args[:8]
        tile = _ValueTile(v, Element(kv_value), dim, Multiply(way_value), (first, stop), zeros)
        values = v.load(walk, I64)

        def emit(count: int, row: Any, is_first: Any) -> None:
            ahead = builder.select(is_first, walk, idle_walk)
            own_weights = v.at(weights, row, SCORE_ROW_BYTES)
            tile.emit(count, own_weights, values, v.at(acc, row, 4 * dim), ahead)

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
        tokens: tuple[Any, Any],
        zeros: Any,
    ) -> None:
        self._v = v
        self._kv = kv
        self._way = way
        self._head_dim = head_dim
        self._row_bytes = head_dim * kv.num_bytes
        self._first, self._stop = tokens
        self._zeros = zeros

    def emit(self, num_rows: int, weights: Any, values: Any, acc: Any, walk: Any) -> None:
        v = self._v
        most = max(2, isa.active().num_sums // num_rows) * v.lanes
        for start in range(0, self._head_dim, most):
            columns = range(start, min(self._head_dim, start + most))
            places = [
                v.offset(acc, 4 * (row * self._head_dim + column))
                for row in range(num_rows)
                for column in columns[:: v.lanes]
            ]
            # From zero and added at the end: over long contexts that rounds far less often.
            sums = [cgutils.alloca_once(v.b, v.f32s) for _ in places]
            for slot in sums:
                v.b.store(v.constant(0.0), slot)
            self._pieces(num_rows, weights, values, sums, columns, walk)
            for place, slot in zip(places, sums, strict=True):
                v.store(v.b.fadd(v.load(place, v.f32s), v.b.load(slot)), place)

    def _pieces(
        self, num_rows: int, weights: Any, values: Any, sums: list[Any], columns: range, walk: Any
    ) -> None:
        v, b = self._v, self._v.b
        shift = ir.Constant(I64, PIECE_TOKENS.bit_length() - 1)
        begin = b.lshr(self._first, shift)
        end = b.lshr(b.add(self._stop, ir.Constant(I64, PIECE_TOKENS - 1)), shift)
        one = ir.Constant(I64, 1)
        with cgutils.for_range_slice(b, begin, end, one, intp=I64) as (piece, _):
            entry = v.at(walk, piece, 8)
            token = b.shl(piece, shift)
            for index in range(0, PIECE_TOKENS, self._tokens_at_once):
                self._prefetch(entry, columns, index)
                rows = [
                    self._row(values, b.add(token, ir.Constant(I64, index + i)), columns)
                    for i in range(self._tokens_at_once)
                ]
                vectors = self._load(rows, len(columns))
                place = b.add(token, ir.Constant(I64, index))
                for row in range(num_rows):
                    own = sums[row * len(vectors) : (row + 1) * len(vectors)]
                    address = v.offset(weights, SCORE_ROW_BYTES * row)
                    factor = self._factor(address, place)
                    for vector, slot in zip(vectors, own, strict=True):
                        b.store(self._add(factor, vector, b.load(slot)), slot)

    @property
    def _tokens_at_once(self) -> int:
        return 2 if self._way is Multiply.DOT else 1

    def _prefetch(self, entry: Any, columns: range, index: int) -> None:
        """Some tokens of some columns ask for as large a share of a piece's lines."""
        piece_bytes = PIECE_TOKENS * self._row_bytes
        num_steps = PIECE_TOKENS * self._head_dim
        begin = PIECE_TOKENS * columns.start + index * len(columns)
        end = begin + self._tokens_at_once * len(columns)
        num_lines = -(-piece_bytes // 64)
        lines = range(begin * num_lines // num_steps, end * num_lines // num_steps)
        emit_prefetches(self._v, entry, ir.Constant(I64, 0), lines, piece_bytes)

    def _row(self, values: Any, token: Any, columns: range) -> Any:
        """Address of a token's values of some columns, or of zeros."""
        v, b = self._v, self._v.b
        not_before = b.icmp_signed(">=", token, self._first)
        before_stop = b.icmp_signed("<", token, self._stop)
        row = v.at(values, token, self._row_bytes)
        row = b.select(b.and_(not_before, before_stop), row, self._zeros)
        return v.offset(row, columns.start * self._kv.num_bytes)

    def _load(self, rows: list[Any], count: int) -> list[Any]:
        v = self._v
        if self._way is not Multiply.DOT:
            return load_elements(v, rows[0], self._kv, count)
        vectors = []
        for start in range(0, count, 2 * v.lanes):
            width = min(2 * v.lanes, count - start)
            kind = ir.VectorType(I16, width)
            a, c = (v.load(v.offset(row, 2 * start), kind) for row in rows)
            for lanes in _unpacking(width, v.lanes):
                vectors.append(v.b.bitcast(v.shuffle(a, c, lanes), v.i32s))
        return vectors

    def _factor(self, weights: Any, token: Any) -> Any:
        """What every lane is multiplied by: a token's weight or those of a pair."""
        v = self._v
        if self._way is Multiply.DOT:
            return v.splat(v.load(v.at(weights, token, 2), I32))
        return v.splat(v.load_scalar(v.at(weights, token, 4)))

    def _add(self, factor: Any, vector: Any, total: Any) -> Any:
        if self._way is Multiply.DOT:
            return self._v.dot_bfloat16(vector, factor, total)
        return self._v.fma(vector, factor, total)


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
