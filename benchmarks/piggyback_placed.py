"""Contexts put into place instead of computed: what lets hundreds of long requests start at once.

To prefill 256 prompts of 4,096 tokens would take minutes. A request of the tier PLACED_TIER is
admitted as though the device's prefix cache knew its whole prompt but the last token: blocks of its
own, which hold noise. From there on everything is the engine's own doing, and moves real bytes: the
last token is computed, the blocks are copied to the host where the request is offloaded, nobody
shares a block with anybody. What a prompt costs to compute is measured apart, and counted where the
tables say so. Once preempted, a request is computed again like any other.
"""

from typing import Any

import torch

from omniserve.engine.core import Engine
from scheduler.block_hash import extend_block_hashes
from scheduler.blocks import BlockManager
from scheduler.request import Request
from scheduler.residency import Residency

PLACED_TIER = "placed"
_NOISE_NUMBERS = 4 << 20


def install() -> None:
    """From now on, requests of PLACED_TIER are placed, in all engines of this process."""
    hold_prefix = Residency.hold_prefix

    def hold_placed_prefix(residency: Residency, request: Request) -> None:
        # One that comes back from the host brings its own blocks.
        is_new = request.stay is None and not request.num_preemptions
        if request.tier == PLACED_TIER and is_new:
            _make_known(residency.blocks, request)
        hold_prefix(residency, request)

    Residency.hold_prefix = hold_placed_prefix  # type: ignore[assignment, method-assign]


def _make_known(blocks: BlockManager, request: Request) -> None:
    """Blocks that are free now become what the cache knows of the request's prompt."""
    num_blocks = (len(request.token_ids) - 1) // blocks.block_size
    if not blocks.can_allocate(num_blocks + 1):
        return
    hashes = request.block_hashes
    extend_block_hashes(hashes, request.token_ids, num_blocks, blocks.block_size)
    block_ids = blocks.allocate(num_blocks)
    for block_id, block_hash in zip(block_ids, hashes, strict=False):
        blocks.publish(block_id, block_hash)
    blocks.free(block_ids)


def fill_with_noise(engine: Engine, model: str) -> None:
    """Normal numbers in the whole device cache: untouched memory would be read from caches."""
    cache: Any = engine.runtime(model)._kv_pool.cache
    flat = cache.view(-1)
    noise = torch.randn(min(_NOISE_NUMBERS, len(flat)), device=cache.device).to(cache.dtype)
    for piece in flat.split(len(noise)):
        piece.copy_(noise[: len(piece)])
