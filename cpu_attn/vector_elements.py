"""Elements of memory as float32 vectors and back, and the order in which lanes hold them."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

from llvmlite import ir

from cpu_attn import isa
from cpu_attn.element import Element
from cpu_attn.vector_ir import F16, I8, I16, VectorBuilder


class LaneOrder(Enum):
    """How two vectors hold consecutive elements, where other than one after the other.

    Sums over elements do not care, as long as both factors are in the same order. A last vector
    without a partner is always in order.
    """

    IN_ORDER = "in order"
    EVEN_ODD = "even, then odd: pairs of bfloat16 are split by one shift and one mask"
    UNPACKED = "fours of every eight: what 16-bit unpacking of two rows leaves"

    def positions(self, lanes: int) -> list[int]:
        """Which of 2 * lanes elements each lane of the two vectors holds."""
        if self is LaneOrder.EVEN_ODD:
            return [*range(0, 2 * lanes, 2), *range(1, 2 * lanes, 2)]
        if self is LaneOrder.UNPACKED:
            low = [8 * group + i for group in range(lanes // 4) for i in range(4)]
            return low + [position + 4 for position in low]
        return list(range(2 * lanes))


def load_order(element: Element) -> LaneOrder:
    """The order that `load_elements` leaves elements in."""
    return LaneOrder.EVEN_ODD if element is Element.BFLOAT16 else LaneOrder.IN_ORDER


def load_elements(v: VectorBuilder, address: Any, element: Element, count: int) -> list[Any]:
    """`count` elements, a multiple of the lanes, as float32 vectors in `load_order`."""
    lanes = v.lanes
    if element is not Element.BFLOAT16:
        step = lanes * element.num_bytes
        return [
            _load_in_order(v, v.offset(address, step * i), element) for i in range(count // lanes)
        ]
    vectors = []
    for index in range(count // (2 * lanes)):
        pairs = v.load(v.offset(address, 4 * lanes * index), v.i32s)
        even = v.b.shl(pairs, v.int_constant(16))
        odd = v.b.and_(pairs, v.int_constant(-65536))
        vectors += [v.b.bitcast(even, v.f32s), v.b.bitcast(odd, v.f32s)]
    if count % (2 * lanes):
        vectors.append(_load_in_order(v, v.offset(address, 2 * (count - lanes)), element))
    return vectors


def store_elements(
    v: VectorBuilder, vectors: Sequence[Any], address: Any, element: Element
) -> None:
    """The inverse of `load_elements`, rounding to nearest even; INT8 is not stored this way."""
    if element is not Element.BFLOAT16:
        for index, vector in enumerate(vectors):
            _store_in_order(
                v, vector, v.offset(address, v.lanes * element.num_bytes * index), element
            )
        return
    for index in range(0, len(vectors) - 1, 2):
        even = v.b.lshr(_round_to_bfloat16(v, vectors[index]), v.int_constant(16))
        odd = v.b.and_(_round_to_bfloat16(v, vectors[index + 1]), v.int_constant(-65536))
        v.store(v.b.or_(even, odd), v.offset(address, 2 * v.lanes * index))
    if len(vectors) % 2:
        place = v.offset(address, 2 * v.lanes * (len(vectors) - 1))
        _store_in_order(v, vectors[-1], place, element)


def reorder(
    v: VectorBuilder, vectors: Sequence[Any], source: LaneOrder, target: LaneOrder
) -> list[Any]:
    """The same elements with their lanes in another order."""
    if source is target:
        return list(vectors)
    source_lane = {position: lane for lane, position in enumerate(source.positions(v.lanes))}
    lanes = [source_lane[position] for position in target.positions(v.lanes)]
    result = []
    for index in range(0, len(vectors) - 1, 2):
        for half in (lanes[: v.lanes], lanes[v.lanes :]):
            result.append(v.shuffle(vectors[index], vectors[index + 1], half))
    return result + list(vectors[len(result) :])


def _load_in_order(v: VectorBuilder, address: Any, element: Element) -> Any:
    b, lanes = v.b, v.lanes
    if element is Element.FLOAT32:
        return v.load(address, v.f32s)
    if element is Element.INT8:
        return b.sitofp(b.sext(v.load(address, ir.VectorType(I8, lanes)), v.i32s), v.f32s)
    if element is Element.BFLOAT16:
        return v.widen_bfloat16(v.load(address, ir.VectorType(I16, lanes)))
    if isa.active().converts_float16:
        return b.fpext(v.load(address, ir.VectorType(F16, lanes)), v.f32s)
    return _float16_to_float32(v, b.zext(v.load(address, ir.VectorType(I16, lanes)), v.i32s))


def _store_in_order(v: VectorBuilder, vector: Any, address: Any, element: Element) -> None:
    b = v.b
    if element is Element.FLOAT32:
        v.store(vector, address)
    elif element is Element.BFLOAT16:
        bits = b.lshr(_round_to_bfloat16(v, vector), v.int_constant(16))
        v.store(b.trunc(bits, ir.VectorType(I16, v.lanes)), address)
    elif isa.active().converts_float16:
        v.store(b.fptrunc(vector, ir.VectorType(F16, v.lanes)), address)
    else:
        bits = _float32_to_float16(v, vector)
        v.store(b.trunc(bits, ir.VectorType(I16, v.lanes)), address)


def _round_to_bfloat16(v: VectorBuilder, vector: Any) -> Any:
    """float32 lanes as integers whose upper halves are the rounded bfloat16."""
    b = v.b
    bits = b.bitcast(vector, v.i32s)
    last = b.and_(b.lshr(bits, v.int_constant(16)), v.int_constant(1))
    rounded = b.add(bits, b.add(last, v.int_constant(0x7FFF)))
    # Rounding must not turn a NaN into an infinity.
    is_nan = b.fcmp_unordered("uno", vector, vector)
    return b.select(is_nan, b.or_(bits, v.int_constant(0x00400000)), rounded)


def _float16_to_float32(v: VectorBuilder, bits: Any) -> Any:
    """What F16C does in one instruction, by integers.

    The fields are moved into place and the exponent's bias is mended by a product, which is exact
    and takes subnormal numbers along.
    """
    b = v.b
    sign = b.shl(b.and_(bits, v.int_constant(0x8000)), v.int_constant(16))
    fields = b.shl(b.and_(bits, v.int_constant(0x7FFF)), v.int_constant(13))
    value = b.fmul(b.bitcast(fields, v.f32s), v.constant(2.0**112))
    not_finite = b.icmp_unsigned(">=", fields, v.int_constant(0x7C00 << 13))
    fields = b.bitcast(value, v.i32s)
    fields = b.select(not_finite, b.or_(fields, v.int_constant(0x7F800000)), fields)
    return b.bitcast(b.or_(fields, sign), v.f32s)


def _float32_to_float16(v: VectorBuilder, vector: Any) -> Any:
    """The rounded float16 in the lower half of each lane."""
    b = v.b
    bits = b.bitcast(vector, v.i32s)
    sign = b.lshr(b.and_(bits, v.int_constant(-0x80000000)), v.int_constant(16))
    size = b.and_(bits, v.int_constant(0x7FFFFFFF))
    last = b.and_(b.lshr(size, v.int_constant(13)), v.int_constant(1))
    rebased = b.sub(size, v.int_constant((127 - 15) << 23))
    normal = b.lshr(b.add(rebased, b.add(last, v.int_constant(0xFFF))), v.int_constant(13))
    # Adding 0.5 puts the last bit of a subnormal float16 where float32 itself rounds.
    shifted = b.fadd(b.bitcast(size, v.f32s), v.constant(0.5))
    subnormal = b.sub(b.bitcast(shifted, v.i32s), v.int_constant(0x3F000000))
    result = b.select(b.icmp_unsigned("<", size, v.int_constant(113 << 23)), subnormal, normal)
    too_large = b.icmp_unsigned(">=", size, v.int_constant(143 << 23))
    is_nan = b.icmp_unsigned(">", size, v.int_constant(0x7F800000))
    result = b.select(too_large, v.int_constant(0x7C00), result)
    result = b.select(is_nan, v.int_constant(0x7E00), result)
    return b.or_(result, sign)
