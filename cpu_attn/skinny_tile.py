"""A few rows times one block of packed bfloat16 weights, as numba intrinsics.

A block holds the weights of BLOCK_OUTPUTS outputs as [in_features / 2, BLOCK_OUTPUTS, 2]: pairs of
inputs, as the dot product of AVX512-BF16 takes them. Sums are float32 [rows, BLOCK_OUTPUTS].
"""

from collections.abc import Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from cpu_attn.vector_ir import I8, I32, I64, LANES, V_F32, VectorBuilder

BLOCK_OUTPUTS = 64
PAIR_BYTES = 4 * BLOCK_OUTPUTS
"""Of one pair of inputs in a block."""
SUM_ROW_BYTES = 4 * BLOCK_OUTPUTS
_VECTORS = BLOCK_OUTPUTS // LANES
_VECTOR_BYTES = 4 * LANES
# Their sums, the weights of one pair and one pair of x fill the 32 registers.
_MAX_TILE_ROWS = 6
_LINES_A_PAIR = PAIR_BYTES // 64


@intrinsic
def add_products(typing_context, x, x_stride, weights, sums, num_pairs, ahead, num_rows):
    """sums[r, n] += the products of x[r] with output n, over `num_pairs` pairs of inputs.

    As many bytes from `ahead` on are asked for as weights are read. Rows: 1 or more.
    """

    def codegen(context, builder, signature, args):
        v = VectorBuilder(builder)
        *operands, num_rows = args
        most = ir.Constant(I64, _MAX_TILE_ROWS)
        with builder.if_else(builder.icmp_signed("<=", num_rows, most)) as (few, many):
            with few:
                # One tile asks for all lines.
                tile = _ProductTile(v, _LINES_A_PAIR)
                tile.emit(range(1, _MAX_TILE_ROWS + 1), num_rows, *operands)
            with many:
                _emit_tiles(v, num_rows, *operands)

    return types.void(*([types.int64] * 7)), codegen


def _emit_tiles(
    v: VectorBuilder,
    num_rows: Any,
    x: Any,
    x_stride: Any,
    weights: Any,
    sums: Any,
    num_pairs: Any,
    ahead: Any,
) -> None:
    """Two tiles or more of nearly the same size, none smaller than half of the largest."""
    b = v.b
    most, one, zero = (ir.Constant(I64, n) for n in (_MAX_TILE_ROWS, 1, 0))
    num_tiles = b.udiv(b.add(num_rows, ir.Constant(I64, _MAX_TILE_ROWS - 1)), most)
    tile = _ProductTile(v, _LINES_A_PAIR // 2)
    second_half = b.mul(num_pairs, ir.Constant(I64, PAIR_BYTES // 2))
    with cgutils.for_range(b, num_tiles, intp=I64) as loop:
        first = b.udiv(b.mul(loop.index, num_rows), num_tiles)
        stop = b.udiv(b.mul(b.add(loop.index, one), num_rows), num_tiles)
        # Two tiles share the lines; those after them find nothing left to ask for.
        skipped = b.select(b.icmp_signed("==", loop.index, zero), zero, second_half)
        tile.emit(
            range(_MAX_TILE_ROWS // 2, _MAX_TILE_ROWS + 1),
            b.sub(stop, first),
            b.add(x, b.mul(first, x_stride)),
            x_stride,
            weights,
            v.at(sums, first, SUM_ROW_BYTES),
            num_pairs,
            b.add(ahead, skipped),
        )


class _ProductTile:
    """Emits the products of one tile of rows; its sums stay in registers meanwhile."""

    def __init__(self, v: VectorBuilder, num_lines: int) -> None:
        """num_lines: cache lines that are asked for with each pair of inputs."""
        self._v = v
        self._num_lines = num_lines

    def emit(self, choices: Iterable[int], num_rows: Any, *operands: Any) -> None:
        """Code for each number of rows, of which the one that `num_rows` is runs."""
        b = self._v.b
        done = b.append_basic_block("rows_done")
        choice = b.switch(num_rows, done)
        for rows in choices:
            block = b.append_basic_block(f"rows_{rows}")
            choice.add_case(ir.Constant(I64, rows), block)
            b.position_at_end(block)
            self._emit_rows(rows, *operands)
            b.branch(done)
        b.position_at_end(done)

    def _emit_rows(
        self, rows: int, x: Any, x_stride: Any, weights: Any, sums: Any, num_pairs: Any, ahead: Any
    ) -> None:
        v, b = self._v, self._v.b
        places = [v.offset(sums, _VECTOR_BYTES * i) for i in range(rows * _VECTORS)]
        totals = [cgutils.alloca_once(b, V_F32) for _ in places]
        for place, total in zip(places, totals, strict=True):
            b.store(v.load(place, V_F32), total)
        x_rows = [b.add(x, b.mul(x_stride, ir.Constant(I64, row))) for row in range(rows)]
        with cgutils.for_range(b, num_pairs, intp=I64) as loop:
            self._prefetch(v.at(ahead, loop.index, 64 * self._num_lines))
            self._add_pair(
                [v.at(row, loop.index, 4) for row in x_rows],
                v.at(weights, loop.index, PAIR_BYTES),
                totals,
            )
        for place, total in zip(places, totals, strict=True):
            v.store(b.load(total), place)

    def _prefetch(self, address: Any) -> None:
        for line in range(self._num_lines):
            self._v.prefetch_second_level(self._v.offset(address, 64 * line))

    def _add_pair(self, x_rows: Sequence[Any], weights: Any, totals: Sequence[Any]) -> None:
        v, b = self._v, self._v.b
        outputs = [v.load(v.offset(weights, _VECTOR_BYTES * i), v.i32s) for i in range(_VECTORS)]
        for row, x in enumerate(x_rows):
            pair = v.splat(v.load(x, I32))
            for index, weight in enumerate(outputs):
                total = totals[row * _VECTORS + index]
                b.store(v.dot_bfloat16(weight, pair, b.load(total)), total)


@intrinsic
def stack_memory(typing_context, num_bytes):
    """The address of memory that lasts until the kernel that asks for it returns."""
    if not isinstance(num_bytes, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, args):
        # In the entry block, which runs once. Not numba's helper: it fills with zeros, over whose
        # one huge store the compiler ponders for seconds.
        with builder.goto_entry_block():
            memory = builder.alloca(I8, signature.args[0].literal_value)
        memory.align = 64
        return builder.ptrtoint(memory, I64)

    return types.int64(num_bytes), codegen


@intrinsic
def start_sums(typing_context, bias, sums):
    """One row of sums begins with the float32 bias of a block."""

    def codegen(context, builder, signature, args):
        v = VectorBuilder(builder)
        for offset in range(0, SUM_ROW_BYTES, _VECTOR_BYTES):
            v.store(v.load(v.offset(args[0], offset), V_F32), v.offset(args[1], offset))

    return types.void(types.int64, types.int64), codegen


@intrinsic
def store_sums(typing_context, sums, out):
    """One row of sums, rounded to bfloat16 once."""

    def codegen(context, builder, signature, args):
        v = VectorBuilder(builder)
        for offset in range(0, SUM_ROW_BYTES, _VECTOR_BYTES):
            rounded = v.round_bfloat16(v.load(v.offset(args[0], offset), V_F32))
            v.store(rounded, v.offset(args[1], offset // 2))

    return types.void(types.int64, types.int64), codegen
