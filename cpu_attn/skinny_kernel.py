import os
from numba import carray, types
from cpu_attn._jit import c_callback
from cpu_attn.memory import take_number
from cpu_attn.skinny_tile import *

NUM_FIELDS = 16
CHUNK = int(os.environ.get("CHUNK", "64"))
D = [int(d) for d in os.environ.get("DIST", "8192,5120,3072").split(",")]
D0, D1, D2 = (D + [0, 0, 0])[:3]
_TASK = types.void(types.CPointer(types.int64))

def kernel():
    key = (CHUNK, D0, D1, D2, tuple(LOC))
    def run(task_pointer):
        key
        task = carray(task_pointer, NUM_FIELDS)
        sums = stack_memory(24 * 256)
        num_blocks, rows, x, stride, num_pairs, weights, bias, out, out_stride = task[1], task[2], task[3], task[4], task[5], task[6], task[7], task[8], task[9]
        block_bytes = num_pairs * 256
        groups = (rows + 5) // 6
        n = take_number(task.ctypes.data)
        while n < num_blocks:
            nn = take_number(task.ctypes.data)
            block = weights + n * block_bytes
            nextb = weights + nn * block_bytes
            if nn >= num_blocks:
                nextb = block
            for row in range(rows):
                start_sums(bias + n * 256, sums + row * 256)
            first = 0
            while first < num_pairs:
                count = min(CHUNK, num_pairs - first)
                pos = first * 256
                a0 = pos + D0
                a0 = block + a0 if a0 < block_bytes else nextb + a0 - block_bytes
                a1 = pos + D1
                a1 = block + a1 if a1 < block_bytes else nextb + a1 - block_bytes
                a2 = pos + D2
                a2 = block + a2 if a2 < block_bytes else nextb + a2 - block_bytes
                w = block + pos
                xx = x + first * 4
                if groups == 1:
                    if rows == 1:
                        add_products(xx, stride, w, sums, count, a0, a1, a2, 1, 4)
                    elif rows == 2:
                        add_products(xx, stride, w, sums, count, a0, a1, a2, 2, 4)
                    elif rows == 3:
                        add_products(xx, stride, w, sums, count, a0, a1, a2, 3, 4)
                    elif rows == 4:
                        add_products(xx, stride, w, sums, count, a0, a1, a2, 4, 4)
                    elif rows == 5:
                        add_products(xx, stride, w, sums, count, a0, a1, a2, 5, 4)
                    else:
                        add_products(xx, stride, w, sums, count, a0, a1, a2, 6, 4)
                else:
                    row = 0
                    half = count * 128
                    for g in range(groups):
                        m = (rows - row + groups - g - 1) // (groups - g)
                        xr = xx + row * stride
                        s = sums + row * 256
                        if m == 3:
                            add_products(xr, stride, w, s, count, a0, a1, a2, 3, 2)
                        elif m == 4:
                            add_products(xr, stride, w, s, count, a0, a1, a2, 4, 2)
                        elif m == 5:
                            add_products(xr, stride, w, s, count, a0, a1, a2, 5, 2)
                        else:
                            add_products(xr, stride, w, s, count, a0, a1, a2, 6, 2)
                        if g == 0:
                            a0 += half
                            a1 += half
                            a2 += half
                        row += m
                first += count
            for row in range(rows):
                store_sums(sums + row * 256, out + row * out_stride + n * 128)
            n = nn
    return c_callback(_TASK)(run)
