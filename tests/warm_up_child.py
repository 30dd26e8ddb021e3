"""Warms up attention kernels in a process of its own, holds them to the oracle, prints what it was.

Arguments: the largest file that it may write, in bytes, or -1, then CACHE:QUERIES:HEAD_DIM each.
"""

import json
import resource
import sys
from pathlib import Path

from attention_cases import assert_right, make_case, split_shape

import cpu_attn
from cpu_attn.warm_up_command import variant_of


def main() -> None:
    limit = int(sys.argv[1])
    if limit >= 0:
        # As on a full disk, for whoever it is that runs this.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    variants = [variant_of(text) for text in sys.argv[2:]]
    results = cpu_attn.warm_up(variants)
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
