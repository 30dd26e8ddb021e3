"""Raw memory for kernels: loads, stores and counters that threads share, as numba intrinsics."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from cpu_attn.vector_ir import F32, I32, I64


@intrinsic
def load_i32(typing_context, address):
    """The int32 at an address, as int64."""

    def codegen(context, builder, signature, args):
        value = builder.load(builder.inttoptr(args[0], I32.as_pointer()))
        return builder.sext(value, I64)

    return types.int64(types.int64), codegen


@intrinsic
def load_f32(typing_context, address):
    """The float32 at an address."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], F32.as_pointer()))

    return types.float32(types.int64), codegen


@intrinsic
def store_f32(typing_context, address, value):
    """Writes a float32 to an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], F32.as_pointer()))

    return types.void(types.int64, types.float32), codegen


@intrinsic
def take_number(typing_context, address):
    """Increments the int64 counter at an address; each thread gets another number."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def count_down(typing_context, address):
    """Decrements the int32 counter at an address; what it was before.

    All that a thread wrote before it counts down is seen by one that counts down later.
    """

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        before = builder.atomic_rmw("sub", pointer, ir.Constant(I32, 1), "acq_rel")
        return builder.sext(before, I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_i32(typing_context, address, value):
    """Writes an int64 as an int32 to an address."""

    def codegen(context, builder, signature, args):
        builder.store(builder.trunc(args[1], I32), builder.inttoptr(args[0], I32.as_pointer()))

    return types.void(types.int64, types.int64), codegen


@intrinsic
def count_up(typing_context, address):
    """Increments the int64 counter at an address; who sees it sees what was written before."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "release")

    return types.void(types.int64), codegen
