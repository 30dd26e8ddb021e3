"""KV of requests on its way between the device's cache and the host's pool."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BlockIds = NDArray[np.int64]


class BlockCopy(Protocol):
    """A copy under way."""

    def has_landed(self) -> bool:
        """Never waits; raises what the copy raised."""


class BlockCopier(Protocol):
    """Copies whole blocks of all layers in the background, in the order in which it is asked.

    Block `device_ids[i]` and block `host_ids[i]`, int64 [n], belong together; n may be 0.
    """

    @property
    def num_device_blocks(self) -> int: ...

    @property
    def num_host_blocks(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    def copy_out(self, device_ids: BlockIds, host_ids: BlockIds) -> BlockCopy:
        """From the device to the host; comes back at once."""

    def copy_in(self, device_ids: BlockIds, host_ids: BlockIds) -> BlockCopy:
        """From the host to the device; comes back at once."""

    def close(self) -> None:
        """Waits for the copies; no other can begin. Doing it again is harmless."""


@dataclass(frozen=True, slots=True)
class _Swap:
    key: str
    is_out: bool
    num_bytes: int
    copy: BlockCopy


class KvSwapper:
    """Swaps under way and what landed so far; for one thread at a time.

    Nothing here waits, but `close`. The blocks of a swap belong to it until `poll` has named its
    key.
    """

    def __init__(self, copier: BlockCopier) -> None:
        self.reset_counters()
        self._copier = copier
        self._under_way: deque[_Swap] = deque()

    def reset_counters(self) -> None:
        """As if nothing had ever been swapped."""
        self.num_swaps_out = 0
        """Counter: swaps that landed on the host."""
        self.num_swaps_in = 0
        """Counter: swaps that landed on the device."""
        self.swap_out_bytes = 0
        self.swap_in_bytes = 0

    @property
    def num_in_flight(self) -> int:
        return len(self._under_way)

    def begin_out(
        self, key: str, device_block_ids: Sequence[int], host_block_ids: Sequence[int]
    ) -> None:
        """Block i of the device goes to block i of the host; nothing to copy lands as well."""
        device_ids, host_ids = self._checked(device_block_ids, host_block_ids)
        self._add(key, True, len(host_ids), self._copier.copy_out(device_ids, host_ids))

    def begin_in(
        self, key: str, host_block_ids: Sequence[int], device_block_ids: Sequence[int]
    ) -> None:
        """Block i of the host goes to block i of the device; nothing to copy lands as well."""
        device_ids, host_ids = self._checked(device_block_ids, host_block_ids)
        self._add(key, False, len(host_ids), self._copier.copy_in(device_ids, host_ids))

    def poll(self) -> list[str]:
        """Keys of swaps that landed since, in the order in which they began.

        Raises what a copy raised, after the keys before it were returned. Its swap is not under way
        any more then; the others are.
        """
        landed: list[str] = []
        while self._under_way:
            swap = self._under_way[0]
            try:
                if not swap.copy.has_landed():
                    break
            except Exception:
                if landed:
                    break
                self._under_way.popleft()
                raise
            self._under_way.popleft()
            self._count(swap)
            landed.append(swap.key)
        return landed

    def close(self) -> None:
        """Waits for the copies; no swap can begin after it. Doing it again is harmless."""
        self._copier.close()

    def _checked(
        self, device_block_ids: Sequence[int], host_block_ids: Sequence[int]
    ) -> tuple[BlockIds, BlockIds]:
        assert len(device_block_ids) == len(host_block_ids)
        return (
            _ids_below(self._copier.num_device_blocks, device_block_ids),
            _ids_below(self._copier.num_host_blocks, host_block_ids),
        )

    def _add(self, key: str, is_out: bool, num_blocks: int, copy: BlockCopy) -> None:
        num_bytes = num_blocks * self._copier.block_bytes
        self._under_way.append(_Swap(key, is_out, num_bytes, copy))

    def _count(self, swap: _Swap) -> None:
        if swap.is_out:
            self.num_swaps_out += 1
            self.swap_out_bytes += swap.num_bytes
        else:
            self.num_swaps_in += 1
            self.swap_in_bytes += swap.num_bytes


def _ids_below(num_blocks: int, block_ids: Sequence[int]) -> BlockIds:
    ids = np.array(block_ids, dtype=np.int64)
    # Raised under `python -O` too: a copy outside the memory writes to somebody else's.
    if len(ids) and not 0 <= ids.min() <= ids.max() < num_blocks:
        raise AssertionError(f"blocks {block_ids}, the memory has {num_blocks}")
    return ids
