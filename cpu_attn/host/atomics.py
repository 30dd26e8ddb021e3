"""Atomic words of shared memory, waiting for them, and calls by address, as numba intrinsics.

Addresses are int64. Words are int64 unless the name says i32; each lies within a cache line.
"""

import platform

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from cpu_attn.vector_ir import I32, I64

_X86 = platform.machine() in ("x86_64", "AMD64")
_ARM = platform.machine() == "aarch64"

_SYS_FUTEX = 202 if _X86 else 98
"""98 is its number on every architecture that shares the generic table."""
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_CLOCK_MONOTONIC = 1


def _word(builder, address, kind=I64):
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load_acquire(typing_context, address):
    """The word; what was written before it was stored with release order is seen after."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_word(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def load_acquire_i32(typing_context, address):
    """As `load_acquire`, of an int32 word."""

    def codegen(context, builder, signature, args):
        value = builder.load_atomic(_word(builder, args[0], I32), "acquire", 4)
        return builder.sext(value, I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_release(typing_context, address, value):
    """Stores the word after everything that was written before."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _word(builder, args[0]), "release", 8)

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load_plain(typing_context, address):
    """The word, in no order: for what an acquired word has made visible."""

    def codegen(context, builder, signature, args):
        return builder.load(_word(builder, args[0]))

    return types.int64(types.int64), codegen


@intrinsic
def store_plain(typing_context, address, value):
    """Stores the word in no order: for what a word stored with release order will make visible."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _word(builder, args[0]))

    return types.void(types.int64, types.int64), codegen


@intrinsic
def store_plain_i32(typing_context, address, value):
    """As `store_plain`, of an int32 word."""

    def codegen(context, builder, signature, args):
        builder.store(builder.trunc(args[1], I32), _word(builder, args[0], I32))

    return types.void(types.int64, types.int64), codegen


@intrinsic
def compare_and_swap(typing_context, address, expected, value):
    """Stores `value` where the word is `expected`; whether it was."""

    def codegen(context, builder, signature, args):
        result = builder.cmpxchg(
            _word(builder, args[0]), args[1], args[2], "acq_rel", failordering="acquire"
        )
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def fetch_add(typing_context, address, value):
    """Adds to the word, acquire and release; what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def fetch_add_i32(typing_context, address, value):
    """As `fetch_add`, of an int32 word."""

    def codegen(context, builder, signature, args):
        pointer = _word(builder, args[0], I32)
        old = builder.atomic_rmw("add", pointer, builder.trunc(args[1], I32), "acq_rel")
        return builder.sext(old, I64)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def full_fence(typing_context):
    """No load after it goes before a store ahead of it, and all threads agree on the order."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")

    return types.void(), codegen


@intrinsic
def pause(typing_context):
    """Tells the core that it waits in a loop."""

    def codegen(context, builder, signature, args):
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(_declare(builder, "llvm.x86.sse2.pause", kind), [])
        elif _ARM:
            kind = ir.FunctionType(ir.VoidType(), [I32])
            builder.call(_declare(builder, "llvm.aarch64.hint", kind), [ir.Constant(I32, 1)])

    return types.void(), codegen


@intrinsic
def monotonic_ns(typing_context):
    """Nanoseconds of the monotonic clock."""

    def codegen(context, builder, signature, args):
        timespec = ir.LiteralStructType([I64, I64])
        kind = ir.FunctionType(I32, [I32, timespec.as_pointer()])
        now = cgutils.alloca_once(builder, timespec)
        clock = ir.Constant(I32, _CLOCK_MONOTONIC)
        builder.call(_declare(builder, "clock_gettime", kind), [clock, now])
        seconds, rest = (builder.load(cgutils.gep_inbounds(builder, now, 0, i)) for i in (0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), rest)

    return types.int64(), codegen


@intrinsic
def futex_wait(typing_context, address, expected):
    """Sleeps until woken where the int32 word is `expected`; may return for no reason."""

    def codegen(context, builder, signature, args):
        _futex(builder, args[0], _FUTEX_WAIT, args[1])

    return types.void(types.int64, types.int64), codegen


@intrinsic
def futex_wake(typing_context, address, count):
    """Wakes up to `count` of the threads of any process that sleep on the word."""

    def codegen(context, builder, signature, args):
        _futex(builder, args[0], _FUTEX_WAKE, args[1])

    return types.void(types.int64, types.int64), codegen


@intrinsic
def call_kernel(typing_context, address, task):
    """Calls the `void (*)(int64_t *)` at an address."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer()])
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], I64.as_pointer())])

    return types.void(types.int64, types.int64), codegen


def _futex(builder, address, operation, value):
    # Through libc: by name, so that cached code holds no address of this process.
    kind = ir.FunctionType(I64, [I64], var_arg=True)
    number, action, no_timeout = (ir.Constant(I64, n) for n in (_SYS_FUTEX, operation, 0))
    function = _declare(builder, "syscall", kind)
    builder.call(function, [number, address, action, value, no_timeout])


def _declare(builder, name, kind):
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
