"""What the tiles of attention share: how they are compiled and how they go over their rows."""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.vector_elements import LaneOrder, load_order
from cpu_attn.vector_ir import I64, VectorBuilder

UNIT_TOKENS = 16
"""Tokens of one head that one call of a tile goes over: it lies in one block."""
PIECE_TOKENS = 4
"""Tokens of one head that lie behind one address of a walk."""
SCORE_ROW_BYTES = 4 * TILE_TOKENS
"""Of a row's scores, and of the weights that take their place."""

# How far ahead of the walk each line is asked for, in bytes. A core drops what is asked for while
# all its miss buffers are taken, so every line is asked for again as it comes nearer.
_PREFETCH_DISTANCES = (8192, 5120, 3072)


class Multiply(IntEnum):
    """How a compiled tile multiplies."""

    FMA = 0
    """float32, whatever the cache holds."""
    DOT_SCORES = 1
    """Queries and keys as pairs of bfloat16, which both are already; values as FMA."""
    DOT = 2
    """Pairs of bfloat16 throughout: weights are rounded for it."""


QUERY_BYTES = (4, 2, 2)
"""Of one element of a loaded query row, by the way that is multiplied."""
WEIGHT_BYTES = (4, 4, 2)
"""Of one token's weight."""


def multiply(variant: KernelVariant) -> Multiply:
    """The way that this CPU offers for a variant; never a less exact one than was asked for."""
    if not isa.active().dots_bfloat16 or variant.io is not Element.BFLOAT16:
        return Multiply.FMA
    if variant.products is Products.BFLOAT16:
        return Multiply.DOT
    # Every int8 is a bfloat16 too.
    is_exact = variant.kv in (Element.BFLOAT16, Element.INT8)
    return Multiply.DOT_SCORES if is_exact else Multiply.FMA


def query_order(kv: Element, way: Multiply) -> LaneOrder:
    """Of query rows, which meet keys as they are loaded."""
    return load_order(kv) if way is Multiply.FMA else LaneOrder.IN_ORDER


def value_order(kv: Element, way: Multiply) -> LaneOrder:
    """Of accumulator rows, which take values up as they are loaded."""
    return LaneOrder.UNPACKED if way is Multiply.DOT else load_order(kv)


def pieces_ahead(piece_bytes: int) -> tuple[int, ...]:
    """The pieces of a walk to be asked for, counted from the one that is worked on."""
    return tuple(max(1, round(distance / piece_bytes)) for distance in _PREFETCH_DISTANCES)


def emit_prefetches(
    v: VectorBuilder, walk: Any, offset: Any, lines: Iterable[int], piece_bytes: int
) -> None:
    """Asks for lines of the pieces ahead of `walk`, the address of the present one's entry.

    `offset` is added to each (bytes), lines are numbers within a piece.
    """
    numbers = list(lines)
    if not numbers:
        return
    for pieces in pieces_ahead(piece_bytes):
        piece = v.b.add(v.load(v.offset(walk, 8 * pieces), I64), offset)
        for line in numbers:
            v.prefetch(v.offset(piece, 64 * line))


def tile_signature(
    num_addresses: int, literals: tuple[Any, ...], *others: Any, result: Any = types.void
) -> Any:
    """int64 addresses and counts, other types, then integers known to the compiler, or None."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in literals):
        return None
    return result(*([types.int64] * num_addresses), *others, *literals)


def literal_values(signature: Any, count: int) -> list[int]:
    return [argument.literal_value for argument in signature.args[-count:]]


def for_row_groups(builder: Any, num_rows: Any, emit: Callable[[int, Any, Any], None]) -> None:
    """Emits rows in groups of 4, then 2, then 1: emit(rows of the group, first row, is first)."""
    zero = ir.Constant(I64, 0)
    fours = builder.lshr(num_rows, ir.Constant(I64, 2))
    with cgutils.for_range(builder, fours, intp=I64) as loop:
        row = builder.shl(loop.index, ir.Constant(I64, 2))
        emit(4, row, builder.icmp_signed("==", row, zero))
    for count in (2, 1):
        has_group = builder.icmp_signed("!=", builder.and_(num_rows, ir.Constant(I64, count)), zero)
        with builder.if_then(has_group):
            row = builder.and_(num_rows, ir.Constant(I64, -2 * count))
            emit(count, row, builder.icmp_signed("==", row, zero))
