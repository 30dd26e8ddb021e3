"""Measures how fast KV moves between the device and the host's pool."""

import time
from collections.abc import Callable

from omniserve.piggyback.runtime import Piggyback

_BLOCKS = 64
_ROUNDS = 5
_GIVE_UP_S = 10.0
_KEY = "measured copy"


def copy_bytes_per_s(piggyback: Piggyback, num_device_blocks: int) -> float:
    """Out and back again, with blocks that nobody holds: the best of some rounds.

    Raises TimeoutError where there are none, or copies do not come to an end.
    """
    pool, swapper = piggyback.host_blocks, piggyback.swapper
    num_blocks = min(_BLOCKS, num_device_blocks, pool.num_free_blocks)
    if not num_blocks:
        raise TimeoutError("the host has no KV memory to copy to")
    device_ids, host_ids = list(range(num_blocks)), pool.allocate(num_blocks)
    seconds = []
    before_bytes = swapper.swap_out_bytes + swapper.swap_in_bytes
    try:
        for _ in range(_ROUNDS):
            start_s = time.perf_counter()
            swapper.begin_out(_KEY, device_ids, host_ids)
            swapper.begin_in(_KEY, host_ids, device_ids)
            _await(lambda: swapper.num_in_flight == 0, swapper.poll)
            seconds.append(time.perf_counter() - start_s)
    finally:
        pool.free(host_ids)
    num_bytes = swapper.swap_out_bytes + swapper.swap_in_bytes - before_bytes
    return num_bytes / _ROUNDS / min(seconds)


def _await(is_done: Callable[[], bool], poll: Callable[[], object]) -> None:
    deadline_s = time.perf_counter() + _GIVE_UP_S
    while not is_done():
        poll()
        if time.perf_counter() > deadline_s:
            raise TimeoutError(f"copies take more than {_GIVE_UP_S:g} s")
