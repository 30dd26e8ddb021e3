"""How near the packed linear layers come to what this machine can read.

Reads a large buffer, then runs linear layers of a few rows over weights that no cache holds, in
turn; reports bytes a second and the median of the paired ratios, with its spread.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from omniserve.models.linear import PackedLinear

READ_BYTES = 256 << 20
IN_FEATURES, OUT_FEATURES = 1024, 6144
NUM_WEIGHTS = 16
"""Distinct weights in rotation: 192 MiB, more than caches hold."""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    buffer = torch.zeros(READ_BYTES // 4)
    layers = [
        PackedLinear(torch.randn(OUT_FEATURES, IN_FEATURES).bfloat16(), None)
        for _ in range(NUM_WEIGHTS)
    ]
    weight_bytes = 2 * IN_FEATURES * OUT_FEATURES * NUM_WEIGHTS
    print(f"{options.threads} threads, bfloat16, {IN_FEATURES} x {OUT_FEATURES}")
    print("| rows | read GB/s | linear GB/s | ratio | middle half |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for rows in (1, 8, 32):
            x = torch.randn(rows, IN_FEATURES).bfloat16()

            def run_layers(x: torch.Tensor = x) -> None:
                for layer in layers:
                    layer(x)

            run_layers()
            reads, linears = [], []
            for _ in range(options.rounds):
                reads.append(READ_BYTES / seconds(buffer.sum) / 1e9)
                linears.append(weight_bytes / seconds(run_layers) / 1e9)
            ratios = [a / b for a, b in zip(linears, reads, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            read, linear = statistics.median(reads), statistics.median(linears)
            print(f"| {rows} | {read:.1f} | {linear:.1f} | {middle:.2f} | {low:.2f}..{high:.2f} |")


if __name__ == "__main__":
    main()
