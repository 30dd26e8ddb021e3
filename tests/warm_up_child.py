"""Warms up kernels in a process of its own, sees that they work, and prints what it was.

Arguments: the largest file that it may write, in bytes, or -1, then CACHE:QUERIES:HEAD_DIM each.
MEETING_OF_TWO names a directory where two of these wait for each other before they begin.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from attention_cases import assert_right, make_case, split_shape

import cpu_attn
from cpu_attn.warm_up_command import variant_of

PATIENCE_S = 120.0


def assert_merges() -> None:
    """Two parts, the second with the weight of three of the first, and a row that sees nothing."""
    outs = np.array([[[8.0, 0.0], [7.0, 7.0]], [[0.0, 4.0], [7.0, 7.0]]], dtype=np.float32)
    lses = np.array([[0.0, -np.inf], [np.log(3.0), -np.inf]], dtype=np.float32)
    out, lse = cpu_attn.merge_partials(outs, lses)
    np.testing.assert_allclose(out, [[2.0, 3.0], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(lse, [np.log(4.0), -np.inf], rtol=1e-6)


def meet(directory: Path) -> None:
    (directory / str(os.getpid())).touch()
    until_s = time.monotonic() + PATIENCE_S
    while len(list(directory.iterdir())) < 2:
        assert time.monotonic() < until_s, "nobody comes"
        time.sleep(0.01)


def main() -> None:
    if "MEETING_OF_TWO" in os.environ:
        meet(Path(os.environ["MEETING_OF_TWO"]))
    limit = int(sys.argv[1])
    if limit >= 0:
        # As on a full disk, for whoever it is that runs this.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    variants = [variant_of(text) for text in sys.argv[2:]]
    results = cpu_attn.warm_up(variants)
    assert_merges()
    for variant in variants:
        case = make_case(variant, split_shape(context_lens=(150, 70), appends=True))
        assert_right(case, *case.run())
    folder = cpu_attn.cache_folder()
    report = {
        "package": str(Path(cpu_attn.__file__).parent),
        "folder": None if folder is None else str(folder),
        "from_cache": [result.from_cache for result in results],
        "is_kept": [result.is_kept for result in results],
        "seconds": [result.seconds for result in results],
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
