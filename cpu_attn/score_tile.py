"""Scores of a run of keys, as numba intrinsics: rows of queries against tokens of one head."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.tile_loops import (
    PIECE_TOKENS,
    QUERY_BYTES,
    SCORE_ROW_BYTES,
    UNIT_TOKENS,
    Multiply,
    emit_prefetches,
    for_row_groups,
    literal_values,
    query_order,
    tile_signature,
)
from cpu_attn.vector_elements import LaneOrder, load_elements, load_order, reorder, store_elements
from cpu_attn.vector_ir import I16, I64, VectorBuilder


@intrinsic(prefer_literal=True)
def load_query(typing_context, source, q, io, kv, head_dim, way):
    """One query row of `io` at `source` to where and how `score_unit` wants it."""
    signature = tile_signature(2, (io, kv, head_dim, way))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        io_value, kv_value, dim, way_value = literal_values(signature, 4)
        v = VectorBuilder(builder, isa.active().lanes)
        element, way = Element(io_value), Multiply(way_value)
        vectors = load_elements(v, args[0], element, dim)
        if way is Multiply.FMA:
            order = query_order(Element(kv_value), way)
            ordered = reorder(v, vectors, load_order(element), order)
            for index, vector in enumerate(ordered):
                v.store(vector, v.offset(args[1], 4 * v.lanes * index))
        else:
            even_odd = reorder(v, vectors, load_order(element), LaneOrder.EVEN_ODD)
            store_elements(v, even_odd, args[1], Element.BFLOAT16)

    return signature, codegen


@intrinsic(prefer_literal=True)
def score_unit(typing_context, q, walk, scores, num_rows, idle_walk, kv, head_dim, way):
    """scores[r, t] = q[r] . keys[t] for the UNIT_TOKENS tokens of the next four pieces of a walk.

    `walk` is the address of the entry of the first of them. Rows of `scores` are SCORE_ROW_BYTES
    apart. `idle_walk` leads to memory that is in the cache.
    """
    signature = tile_signature(5, (kv, head_dim, way))
    if signature is None:
        return None

    def codegen(context, builder, signature, args):
        kv_value, dim, way_value = literal_values(signature, 3)
        v = VectorBuilder(builder, isa.active().lanes)
        tile = _ScoreTile(v, Element(kv_value), dim, Multiply(way_value))
        q, walk, scores, num_rows, idle_walk = args[:5]
        keys = v.load(walk, I64)

        def emit(count: int, row: Any, is_first: Any) -> None:
            # Later rows find the keys in the cache and have nothing to ask for.
            ahead = builder.select(is_first, walk, idle_walk)
            own_scores = v.at(scores, row, SCORE_ROW_BYTES)
            tile.emit(count, v.at(q, row, tile.query_row_bytes), keys, own_scores, ahead)

        for_row_groups(builder, num_rows, emit)

    return signature, codegen


class _ScoreTile:
    """Emits the scores of a few rows, as many tokens at a time as one reduction of lanes takes."""

    def __init__(self, v: VectorBuilder, kv: Element, head_dim: int, way: Multiply) -> None:
        self._v = v
        self._kv = kv
        self._way = way
        self._row_bytes = head_dim * kv.num_bytes
        self.query_row_bytes = head_dim * QUERY_BYTES[way]
        lanes, pair = v.lanes, 2 * v.lanes
        self._chunks = [(i, min(pair, head_dim - i)) for i in range(0, head_dim, pair)]
        assert head_dim % lanes == 0

    def emit(self, num_rows: int, q: Any, keys: Any, scores: Any, walk: Any) -> None:
        v, b = self._v, self._v.b
        num_tokens = v.lanes // num_rows
        num_groups = ir.Constant(I64, UNIT_TOKENS // num_tokens)
        with cgutils.for_range(b, num_groups, intp=I64) as loop:
            token = b.mul(loop.index, ir.Constant(I64, num_tokens))
            own_keys = v.at(keys, token, self._row_bytes)
            reduced = v.sum_each(self._sums(num_rows, num_tokens, q, own_keys, walk, token))
            place = v.at(scores, token, 4)
            for row in range(num_rows):
                address = v.offset(place, SCORE_ROW_BYTES * row)
                v.store_lanes(reduced, row * num_tokens, num_tokens, address)

    def _sums(
        self, num_rows: int, num_tokens: int, q: Any, keys: Any, walk: Any, token: Any
    ) -> list[Any]:
        """One vector of partial sums for each row and token, rows first."""
        v = self._v
        sums = [v.constant(0.0)] * (num_rows * num_tokens)
        num_steps, step = len(self._chunks) * num_tokens, 0
        for start, count in self._chunks:
            queries = [
                self._query(v.offset(q, self.query_row_bytes * row), start, count)
                for row in range(num_rows)
            ]
            for index in range(num_tokens):
                self._prefetch(walk, token, num_tokens, step, num_steps)
                step += 1
                key = self._key(v.offset(keys, self._row_bytes * index), start, count)
                for row in range(num_rows):
                    place = row * num_tokens + index
                    sums[place] = self._add(sums[place], queries[row], key)
        return sums

    def _prefetch(self, walk: Any, token: Any, num_tokens: int, step: int, num_steps: int) -> None:
        """One step's share of the lines: in address order, whatever the order of the loads."""
        v, b = self._v, self._v.b
        piece_bytes = PIECE_TOKENS * self._row_bytes
        piece = b.lshr(token, ir.Constant(I64, PIECE_TOKENS.bit_length() - 1))
        inside = v.at(
            ir.Constant(I64, 0), b.and_(token, ir.Constant(I64, PIECE_TOKENS - 1)), self._row_bytes
        )
        # A group of tokens is some pieces, or a share of one.
        num_pieces = max(1, num_tokens // PIECE_TOKENS)
        steps_a_piece = num_steps // num_pieces
        number, step = divmod(step, steps_a_piece)
        num_lines = -(-min(num_tokens, PIECE_TOKENS) * self._row_bytes // 64)
        lines = range(step * num_lines // steps_a_piece, (step + 1) * num_lines // steps_a_piece)
        entry = v.offset(v.at(walk, piece, 8), 8 * number)
        emit_prefetches(v, entry, inside, lines, piece_bytes)

    def _query(self, row: Any, start: int, count: int) -> list[Any]:
        v = self._v
        if self._way is not Multiply.FMA:
            return [_pairs(v, v.offset(row, 2 * start), count)]
        address = v.offset(row, 4 * start)
        return [v.load(v.offset(address, 4 * v.lanes * i), v.f32s) for i in range(count // v.lanes)]

    def _key(self, row: Any, start: int, count: int) -> list[Any]:
        v = self._v
        address = v.offset(row, start * self._kv.num_bytes)
        if self._way is Multiply.FMA:
            return load_elements(v, address, self._kv, count)
        if self._kv is Element.BFLOAT16:
            return [_pairs(v, address, count)]
        return [v.pack_bfloat16(load_elements(v, address, self._kv, count))]

    def _add(self, total: Any, query: list[Any], key: list[Any]) -> Any:
        for a, c in zip(query, key, strict=True):
            if self._way is Multiply.FMA:
                total = self._v.fma(a, c, total)
            else:
                total = self._v.dot_bfloat16(a, c, total)
        return total


def _pairs(v: VectorBuilder, address: Any, count: int) -> Any:
    """`count` bfloat16 as 32-bit lanes of two; where there are too few, zeros follow."""
    if count == 2 * v.lanes:
        return v.load(address, v.i32s)
    few = v.load(address, ir.VectorType(I16, count))
    zeros = ir.Constant(few.type, [0] * count)
    return v.b.bitcast(v.shuffle(few, zeros, list(range(2 * count))), v.i32s)
