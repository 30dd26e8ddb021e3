"""Vector code as LLVM IR: float32 lanes, as many as one register of the CPU has or a multiple.

Only generic IR is emitted, so LLVM splits or widens it for AVX512, AVX2, SSE or NEON by itself and
no instruction that the CPU lacks can be reached. Those methods that ask for one by name say so.
"""

import math
from typing import Any

from llvmlite import ir

LANES = 16

F32 = ir.FloatType()
F16 = ir.HalfType()
I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
V_F32 = ir.VectorType(F32, LANES)
V_I32 = ir.VectorType(I32, LANES)

LOG2_E = math.log2(math.e)
# ln 2 in two parts: the first has few enough bits that n * _LN2_HIGH is exact.
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860682030941723e-6
# Adding and subtracting 1.5 * 2**23 rounds a float32 to the nearest integer without a library call.
_ROUNDER = 12582912.0
# 2**r for r in -0.5 .. 0.5 to 3e-9 (least squares at Chebyshev nodes), highest power first.
_EXP2_COEFFICIENTS = (
    0.00015344105638540924,
    0.0013405461389861336,
    0.00961854520260243,
    0.055503128064606125,
    0.2402264569755725,
    0.6931472146046747,
    1.0,
)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no type for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class VectorBuilder:
    """Short names for what the kernels need of an llvmlite builder."""

    def __init__(self, builder: Any, lanes: int = LANES) -> None:
        self.b = builder
        self.lanes = lanes
        self.f32s = ir.VectorType(F32, lanes)
        self.i32s = ir.VectorType(I32, lanes)

    def splat(self, scalar: Any) -> Any:
        """A scalar value in every lane."""
        vector_type = ir.VectorType(scalar.type, self.lanes)
        undefined = ir.Constant(vector_type, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(self.i32s, [0] * self.lanes))

    def constant(self, value: float) -> Any:
        return ir.Constant(self.f32s, [value] * self.lanes)

    def int_constant(self, value: int) -> Any:
        return ir.Constant(self.i32s, [value] * self.lanes)

    def lane_numbers(self) -> Any:
        return ir.Constant(self.i32s, list(range(self.lanes)))

    def offset(self, address: Any, num_bytes: int) -> Any:
        return self.b.add(address, ir.Constant(I64, num_bytes)) if num_bytes else address

    def at(self, address: Any, index: Any, stride: int) -> Any:
        """The address of item `index` of items `stride` bytes apart."""
        return self.b.add(address, self.b.mul(index, ir.Constant(I64, stride)))

    def load(self, address: Any, vector_type: Any) -> Any:
        """An unaligned load: nothing is asked of addresses beyond their element's own size."""
        value = self.b.load(self.b.inttoptr(address, vector_type.as_pointer()))
        value.align = _alignment(vector_type)
        return value

    def store(self, value: Any, address: Any) -> None:
        store = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        store.align = _alignment(value.type)

    def store_lanes(self, vector: Any, first: int, count: int, address: Any) -> None:
        """Stores `count` lanes from `first` on."""
        self.store(self.shuffle(vector, vector, list(range(first, first + count))), address)

    def load_scalar(self, address: Any) -> Any:
        return self.load(address, F32)

    def prefetch(self, address: Any) -> None:
        """Asks for the cache line of an address, to be read soon and once."""
        self._prefetch(address, 0)

    def prefetch_second_level(self, address: Any) -> None:
        """Asks for the cache line of an address, to be read later than the first level keeps it."""
        self._prefetch(address, 2)

    def _prefetch(self, address: Any, locality: int) -> None:
        pointer = self.b.inttoptr(address, I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        read, kept, data = (ir.Constant(I32, n) for n in (0, locality, 1))
        self.b.call(self._declare("llvm.prefetch.p0", kind), [pointer, read, kept, data])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, fused where the CPU can."""
        kind = ir.FunctionType(self.f32s, [self.f32s] * 3)
        return self.b.call(self._declare(f"llvm.fmuladd.v{self.lanes}f32", kind), [a, b, c])

    def dot_bfloat16(self, pairs_a: Any, pairs_b: Any, total: Any) -> Any:
        """total + a0 * b0 + a1 * b1 of the bfloat16 pairs in each 32-bit lane, sums in float32.

        Needs AVX512-BF16 and sixteen lanes. Subnormal bfloat16 count as zero.
        """
        pairs = ir.VectorType(_BFloat(), 2 * LANES)
        kind = ir.FunctionType(V_F32, [V_F32, pairs, pairs])
        dot = self._declare("llvm.x86.avx512bf16.dpbf16ps.512", kind)
        a, b = (self.b.bitcast(x, pairs) for x in (pairs_a, pairs_b))
        return self.b.call(dot, [total, a, b])

    def round(self, x: Any) -> Any:
        """To the nearest integer below 2**22 in size, halves to even."""
        return self.b.fsub(self.b.fadd(x, self.constant(_ROUNDER)), self.constant(_ROUNDER))

    def pack_bfloat16(self, vectors: list[Any]) -> Any:
        """One or two vectors of float32 rounded to bfloat16, in 32-bit lanes of two; zeros follow.

        Needs AVX512-BF16 and sixteen lanes.
        """
        whole = ir.VectorType(_BFloat(), 2 * LANES)
        if len(vectors) == 2:
            pack = self._declare(
                "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.FunctionType(whole, [V_F32, V_F32])
            )
            # The second operand fills the lower half.
            return self.b.bitcast(self.b.call(pack, [vectors[1], vectors[0]]), V_I32)
        bits = self.round_bfloat16(vectors[0])
        zeros = ir.Constant(bits.type, [0] * LANES)
        return self.b.bitcast(self.shuffle(bits, zeros, list(range(2 * LANES))), V_I32)

    def round_bfloat16(self, vector: Any) -> Any:
        """Sixteen float32 rounded to bfloat16, as 16-bit lanes. Needs AVX512-BF16."""
        halves = ir.VectorType(_BFloat(), LANES)
        convert = self._declare(
            "llvm.x86.avx512bf16.cvtneps2bf16.512", ir.FunctionType(halves, [V_F32])
        )
        return self.b.bitcast(self.b.call(convert, [vector]), ir.VectorType(I16, LANES))

    def widen_bfloat16(self, bits: Any) -> Any:
        """16-bit lanes of bfloat16 as float32."""
        wide = self.b.zext(bits, self.i32s)
        return self.b.bitcast(self.b.shl(wide, self.int_constant(16)), self.f32s)

    def maximum(self, a: Any, b: Any) -> Any:
        """The larger one; b where either is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def sum_each(self, vectors: list[Any]) -> Any:
        """As many vectors as lanes, to one whose lane i is the sum of vectors[i]."""
        assert len(vectors) == self.lanes
        width = self.lanes
        while len(vectors) > 1:
            width //= 2
            low: list[int] = []
            high: list[int] = []
            for group in range(0, 2 * self.lanes, 2 * width):
                low += range(group, group + width)
                high += range(group + width, group + 2 * width)
            vectors = [
                self.b.fadd(self.shuffle(a, c, low), self.shuffle(a, c, high))
                for a, c in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    def reduce_max(self, vector: Any) -> Any:
        return self._fold(vector, self.maximum)

    def reduce_sum(self, vector: Any) -> Any:
        return self._fold(vector, self.b.fadd)

    def exp(self, x: Any) -> Any:
        """e**x of float32 lanes with x <= 0, to about 2 units in the last place; NaN stays NaN.

        Below -87 it is 0.
        """
        b = self.b
        clamped = self.maximum(self.constant(-87.0), x)
        rounded = self.fma(clamped, self.constant(LOG2_E), self.constant(_ROUNDER))
        n = b.fsub(rounded, self.constant(_ROUNDER))
        r = self.fma(n, self.constant(-_LN2_HIGH), clamped)
        r = self.fma(n, self.constant(-_LN2_LOW), r)
        polynomial = self.constant(1 / 5040)
        for factorial in (720, 120, 24, 6, 2, 1, 1):
            polynomial = self.fma(polynomial, r, self.constant(1 / factorial))
        # The integer is in the low bits of the rounded number; the shift drops all others.
        exponent = b.shl(b.bitcast(rounded, self.i32s), self.int_constant(23))
        value = b.bitcast(b.add(b.bitcast(polynomial, self.i32s), exponent), self.f32s)
        return b.select(b.fcmp_ordered("<", x, self.constant(-87.0)), self.constant(0.0), value)

    def exp2(self, x: Any) -> Any:
        """2**x of float32 lanes with x <= 0, to about 1 unit in the last place; NaN stays NaN.

        Below -126 it is 2**-126, for which the callers' sums have no use.
        """
        b = self.b
        x = self.maximum(self.constant(-126.0), x)
        rounded = b.fadd(x, self.constant(_ROUNDER))
        r = b.fsub(x, b.fsub(rounded, self.constant(_ROUNDER)))
        polynomial = self.constant(_EXP2_COEFFICIENTS[0])
        for coefficient in _EXP2_COEFFICIENTS[1:]:
            polynomial = self.fma(polynomial, r, self.constant(coefficient))
        # The integer is in the low bits of the rounded number; the shift drops all others.
        exponent = b.shl(b.bitcast(rounded, self.i32s), self.int_constant(23))
        return b.bitcast(b.add(b.bitcast(polynomial, self.i32s), exponent), self.f32s)

    def shuffle(self, a: Any, c: Any, lanes: list[int]) -> Any:
        return self.b.shuffle_vector(a, c, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def _fold(self, vector: Any, operation: Any) -> Any:
        """All lanes into one scalar, halving the distance each time."""
        distance = self.lanes // 2
        while distance:
            lanes = [(lane + distance) % self.lanes for lane in range(self.lanes)]
            vector = operation(vector, self.shuffle(vector, vector, lanes))
            distance //= 2
        return self.b.extract_element(vector, ir.Constant(I32, 0))

    def _declare(self, name: str, kind: Any) -> Any:
        module = self.b.module
        return module.globals.get(name) or ir.Function(module, kind, name)


def _alignment(value_type: Any) -> int:
    """Bytes of one element of a vector or scalar type."""
    element = getattr(value_type, "element", value_type)
    if isinstance(element, ir.IntType):
        return max(1, int(element.width) // 8)
    return 2 if isinstance(element, ir.HalfType) else 4
