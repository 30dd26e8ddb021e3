"""Copies between an accelerator's KV cache and the host's pool."""

import torch
from torch import Tensor

from cpu_attn.host import HostKvPool
from cpu_attn.host.kv_arena import consecutive_runs
from omniserve.devices.pinned import PinnedRegion, to_device
from omniserve.devices.side_stream import Mark, SideStream
from omniserve.piggyback.kv_swapper import BlockIds

_STAGING_BYTES = 32 << 20
"""Large enough for full speed, small enough that other copies get their turn in between."""


class AcceleratorBlockCopier:
    """Blocks are gathered on the device, then sent; one copy for each run of host blocks.

    A copy begins behind all steps that were launched before it: they may still write to its blocks.
    """

    def __init__(
        self, cache: Tensor, host_pool: HostKvPool, stream: SideStream, pinned: PinnedRegion
    ) -> None:
        """`cache` [layers, blocks, 2, num_kv_heads, block_size, head_dim] as the pool's layout.

        pinned: the pool's memory; it is this object's to close.
        """
        self.num_device_blocks = cache.shape[1]
        self.num_host_blocks = host_pool.num_blocks
        self.block_bytes = host_pool.layout.block_bytes
        # [blocks, layers, numbers] on both sides; on the device a view of what lies by layer.
        self._cache = cache.flatten(2).transpose(0, 1)
        self._host = torch.from_numpy(host_pool.words).view(cache.dtype)
        assert self._host.shape[1:] == self._cache.shape[1:]
        self._stream = stream
        self._pinned = pinned
        num_staged = min(self.num_device_blocks, max(1, _STAGING_BYTES // self.block_bytes))
        self._staging = torch.empty(
            (num_staged, *self._cache.shape[1:]), dtype=cache.dtype, device=cache.device
        )

    def copy_out(self, device_ids: BlockIds, host_ids: BlockIds) -> "_StreamCopy":
        return _StreamCopy(self._stream.enqueue(lambda: self._send(device_ids, host_ids)))

    def copy_in(self, device_ids: BlockIds, host_ids: BlockIds) -> "_StreamCopy":
        return _StreamCopy(self._stream.enqueue(lambda: self._fetch(device_ids, host_ids)))

    def close(self) -> None:
        self._stream.drain()
        self._pinned.close()

    def _send(self, device_ids: BlockIds, host_ids: BlockIds) -> None:
        for first in range(0, len(device_ids), len(self._staging)):
            part = slice(first, first + len(self._staging))
            indices = to_device(device_ids[part], self._cache.device)
            staged = self._staging[: len(indices)]
            torch.index_select(self._cache, 0, indices, out=staged)
            for device, host in self._pairs(staged, host_ids[part]):
                host.copy_(device, non_blocking=True)

    def _fetch(self, device_ids: BlockIds, host_ids: BlockIds) -> None:
        for first in range(0, len(device_ids), len(self._staging)):
            part = slice(first, first + len(self._staging))
            indices = to_device(device_ids[part], self._cache.device)
            staged = self._staging[: len(indices)]
            for device, host in self._pairs(staged, host_ids[part]):
                device.copy_(host, non_blocking=True)
            self._cache.index_copy_(0, indices, staged)

    def _pairs(self, staged: Tensor, host_ids: BlockIds) -> list[tuple[Tensor, Tensor]]:
        """Staged blocks and where they lie on the host, for each run of ids there."""
        runs = consecutive_runs(host_ids.tolist())
        return [
            (staged[start:stop], self._host[host_ids[start] : host_ids[stop - 1] + 1])
            for start, stop in runs
        ]


class _StreamCopy:
    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def has_landed(self) -> bool:
        return self._mark.query()
