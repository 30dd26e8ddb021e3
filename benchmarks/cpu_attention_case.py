"""What benchmarks/cpu_attention.py measures: shapes, numbers, memory and the exact answer.

Standard library and numpy only: the peer's worker process uses it too.
"""

import math
import mmap
import os
import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
# Noise is made once and laid out again and again from random places.
_NOISE_NUMBERS = 4 << 20


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """One decode step: `num_sequences` sequences of `context_len` tokens, one query token each."""

    kv: str
    block_size: int
    num_threads: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    num_sequences: int
    context_len: int

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group_size

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.context_len // self.block_size)

    @property
    def num_blocks(self) -> int:
        return self.num_sequences * self.blocks_per_sequence

    @property
    def kv_bytes(self) -> int:
        """Keys, values and their scales that a step has to read."""
        return (
            self.num_sequences
            * self.context_len
            * token_bytes(self.kv, self.num_kv_heads, self.head_dim)
        )

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    @property
    def checked_sequences(self) -> list[int]:
        """Those whose outputs are compared with float64."""
        return sorted({0, self.num_sequences // 2, self.num_sequences - 1})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def token_bytes(kv: str, num_kv_heads: int, head_dim: int) -> int:
    """Keys and values of one token; int8 has a float32 scale a head for each."""
    row_bytes = head_dim * ELEMENT_BYTES[kv] + (4 if kv == "int8" else 0)
    return 2 * num_kv_heads * row_bytes


def block_tables(case: AttentionCase) -> NDArray[np.int32]:
    """int32 [num_sequences, blocks_per_sequence]: all blocks of the cache in random order."""
    order = np.random.default_rng(case.num_blocks).permutation(case.num_blocks)
    return order.astype(np.int32).reshape(case.num_sequences, case.blocks_per_sequence)


class Noise:
    """Normal numbers, cheap in bulk: stretches of one long row of them."""

    def __init__(self, seed: int) -> None:
        self._numbers = np.random.default_rng(seed).standard_normal(_NOISE_NUMBERS, np.float32)
        self._places = random.Random(seed)

    def take(self, *shape: int) -> NDArray[np.float32]:
        count = int(np.prod(shape))
        assert count < _NOISE_NUMBERS // 2, "a piece this large would repeat itself"
        first = self._places.randrange(_NOISE_NUMBERS - count)
        return self._numbers[first : first + count].reshape(shape)


def huge_memory(num_bytes: int, *, in_memfd: bool = False) -> NDArray[np.uint8]:
    """Fresh memory, on huge pages where the kernel allows; it is given back with the array."""
    huge_page_bytes = 2 << 20
    num_bytes = -(-num_bytes // huge_page_bytes) * huge_page_bytes
    if in_memfd:
        fd = os.memfd_create("cpu-attention-benchmark")
        os.ftruncate(fd, num_bytes)
        memory = mmap.mmap(fd, num_bytes)
        os.close(fd)
    else:
        memory = mmap.mmap(-1, num_bytes)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        # A kernel without huge pages for this memory: small ones do, all readers meet the same.
        pass
    return np.frombuffer(memory, dtype=np.uint8)


def exact_attention(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], scale: float
) -> NDArray[np.float64]:
    """float64 [num_heads, head_dim], as q; k and v are [context_len, num_kv_heads, head_dim]."""
    num_kv_heads = k.shape[1]
    grouped = q.astype(np.float64).reshape(num_kv_heads, -1, q.shape[-1])
    outputs = []
    for head in range(num_kv_heads):
        logits = scale * grouped[head] @ k[:, head].astype(np.float64).T
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        outputs.append(weights @ v[:, head].astype(np.float64))
    return np.concatenate(outputs)


def relative_error(out: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """The largest, over heads, of the length of the difference over the length of the answer."""
    difference = np.linalg.norm(out.astype(np.float64) - expected, axis=-1)
    worst: float = (difference / np.linalg.norm(expected, axis=-1)).max()
    return worst
