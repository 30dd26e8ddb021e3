"""Vector code as LLVM IR: sixteen float32 lanes at a time, whatever the CPU's own width is.

Only generic IR is emitted, so LLVM splits or widens it for AVX512, AVX2, SSE or NEON by itself and
no instruction that the CPU lacks can be reached.
"""

import math
from typing import Any

from llvmlite import ir

from cpu_attn.element import Element

LANES = 16

F32 = ir.FloatType()
F16 = ir.HalfType()
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
V_F32 = ir.VectorType(F32, LANES)
V_F16 = ir.VectorType(F16, LANES)
V_I32 = ir.VectorType(I32, LANES)

_LOG2_E = math.log2(math.e)
# ln 2 in two parts: the first has few enough bits that n * _LN2_HIGH is exact.
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860682030941723e-6
# Adding and subtracting 1.5 * 2**23 rounds a float32 to the nearest integer without a library call.
_ROUNDER = 12582912.0


class VectorBuilder:
    """Short names for what the attention tiles need of an llvmlite builder."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def splat(self, scalar: Any) -> Any:
        """A scalar value in every lane."""
        vector_type = ir.VectorType(scalar.type, LANES)
        undefined = ir.Constant(vector_type, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(V_I32, [0] * LANES))

    def constant(self, value: float) -> Any:
        return ir.Constant(V_F32, [value] * LANES)

    def int_constant(self, value: int) -> Any:
        return ir.Constant(V_I32, [value] * LANES)

    def lane_numbers(self) -> Any:
        return ir.Constant(V_I32, list(range(LANES)))

    def offset(self, address: Any, num_bytes: int) -> Any:
        return self.b.add(address, ir.Constant(I64, num_bytes)) if num_bytes else address

    def load(self, address: Any, vector_type: Any) -> Any:
        """An unaligned load: nothing is asked of addresses beyond their element's own size."""
        value = self.b.load(self.b.inttoptr(address, vector_type.as_pointer()))
        value.align = 2 if vector_type is V_F16 else 4
        return value

    def store(self, value: Any, address: Any) -> None:
        store = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        store.align = 2 if value.type is V_F16 else 4

    def store_lanes(self, vector: Any, first: int, count: int, address: Any) -> None:
        """Stores `count` lanes from `first` on."""
        self.store(self._shuffle(vector, vector, list(range(first, first + count))), address)

    def load_scalar(self, address: Any) -> Any:
        value = self.b.load(self.b.inttoptr(address, F32.as_pointer()))
        value.align = 4
        return value

    def prefetch(self, address: Any) -> None:
        """Asks for the cache line of an address, to be read soon and once."""
        pointer = self.b.inttoptr(address, I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        read, once, data = (ir.Constant(I32, n) for n in (0, 0, 1))
        self.b.call(self._declare("llvm.prefetch.p0", kind), [pointer, read, once, data])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, fused where the CPU can."""
        kind = ir.FunctionType(V_F32, [V_F32] * 3)
        return self.b.call(self._declare("llvm.fmuladd.v16f32", kind), [a, b, c])

    def maximum(self, a: Any, b: Any) -> Any:
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def load_elements(self, address: Any, element: Element, count: int) -> list[Any]:
        """`count` elements as float32 vectors.

        bfloat16 comes in groups of 32: first the even elements, then the odd ones, which takes one
        shift and one mask instead of a permutation. `store_elements` puts them back.
        """
        if element is Element.FLOAT32:
            return [self.load(self.offset(address, 64 * i), V_F32) for i in range(count // LANES)]
        if element is Element.FLOAT16:
            halves = [self.load(self.offset(address, 32 * i), V_F16) for i in range(count // LANES)]
            return [self.b.fpext(half, V_F32) for half in halves]
        vectors = []
        for index in range(count // (2 * LANES)):
            pairs = self.load(self.offset(address, 64 * index), V_I32)
            even = self.b.shl(pairs, self.int_constant(16))
            odd = self.b.and_(pairs, self.int_constant(-65536))
            vectors += [self.b.bitcast(even, V_F32), self.b.bitcast(odd, V_F32)]
        return vectors

    def store_elements(self, vectors: list[Any], address: Any, element: Element) -> None:
        """The inverse of `load_elements`, rounding to nearest even."""
        if element is Element.BFLOAT16:
            for index in range(0, len(vectors), 2):
                even = self.b.lshr(self._round_to_bfloat16(vectors[index]), self.int_constant(16))
                odd = self._round_to_bfloat16(vectors[index + 1])
                odd = self.b.and_(odd, self.int_constant(-65536))
                self.store(self.b.or_(even, odd), self.offset(address, 32 * index))
            return
        for index, vector in enumerate(vectors):
            if element is Element.FLOAT16:
                vector = self.b.fptrunc(vector, V_F16)
            self.store(vector, self.offset(address, LANES * element.num_bytes * index))

    def sum_each(self, vectors: list[Any]) -> Any:
        """Sixteen vectors to one whose lane i is the sum of vectors[i]."""
        assert len(vectors) == LANES
        width = LANES
        while len(vectors) > 1:
            width //= 2
            low: list[int] = []
            high: list[int] = []
            for group in range(0, 2 * LANES, 2 * width):
                low += range(group, group + width)
                high += range(group + width, group + 2 * width)
            vectors = [
                self.b.fadd(self._shuffle(a, c, low), self._shuffle(a, c, high))
                for a, c in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    def reduce_max(self, vector: Any) -> Any:
        return self._fold(vector, self.maximum)

    def reduce_sum(self, vector: Any) -> Any:
        return self._fold(vector, self.b.fadd)

    def exp(self, x: Any) -> Any:
        """e**x of float32 lanes with x <= 0, to about 2 units in the last place; 0 below -87."""
        b = self.b
        clamped = self.maximum(x, self.constant(-87.0))
        scaled = b.fmul(clamped, self.constant(_LOG2_E))
        n = b.fsub(b.fadd(scaled, self.constant(_ROUNDER)), self.constant(_ROUNDER))
        r = self.fma(n, self.constant(-_LN2_HIGH), clamped)
        r = self.fma(n, self.constant(-_LN2_LOW), r)
        polynomial = self.constant(1 / 5040)
        for factorial in (720, 120, 24, 6, 2, 1, 1):
            polynomial = self.fma(polynomial, r, self.constant(1 / factorial))
        exponent = b.shl(b.fptosi(n, V_I32), self.int_constant(23))
        value = b.bitcast(b.add(b.bitcast(polynomial, V_I32), exponent), V_F32)
        return b.select(b.fcmp_ordered("<", x, self.constant(-87.0)), self.constant(0.0), value)

    def _fold(self, vector: Any, operation: Any) -> Any:
        """All lanes into one scalar, halving the distance each time."""
        distance = LANES // 2
        while distance:
            lanes = [(lane + distance) % LANES for lane in range(LANES)]
            vector = operation(vector, self._shuffle(vector, vector, lanes))
            distance //= 2
        return self.b.extract_element(vector, ir.Constant(I32, 0))

    def _shuffle(self, a: Any, c: Any, lanes: list[int]) -> Any:
        return self.b.shuffle_vector(a, c, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def _round_to_bfloat16(self, vector: Any) -> Any:
        """float32 lanes as integers whose upper halves are the rounded bfloat16."""
        b = self.b
        bits = b.bitcast(vector, V_I32)
        last = b.and_(b.lshr(bits, self.int_constant(16)), self.int_constant(1))
        rounded = b.add(bits, b.add(last, self.int_constant(0x7FFF)))
        # Rounding must not turn a NaN into an infinity.
        is_nan = b.fcmp_unordered("uno", vector, vector)
        return b.select(is_nan, b.or_(bits, self.int_constant(0x00400000)), rounded)

    def _declare(self, name: str, kind: Any) -> Any:
        module = self.b.module
        return module.globals.get(name) or ir.Function(module, kind, name)
