"""From the settings of a model to those of its scheduler; the simulator needs them too."""

from dataclasses import dataclass
from math import gcd

from omniserve.engine.kv_budget import KvBudget
from omniserve.errors import ConfigError
from omniserve.piggyback.limits import piggyback_limits
from omniserve.settings import ModelSettings, PiggybackSettings
from scheduler import SchedulerSettings


@dataclass(frozen=True, slots=True)
class KvExtents:
    """How a pool's memory comes and goes, where models share a budget."""

    num_blocks: int
    """Of one extent."""
    floor_bytes: int
    """That are kept for the model, in whole extents."""
    reach_bytes: int
    """That the model can have at most without floors of others."""


def blocks_per_extent(block_bytes_in_layer: int, page_bytes: int) -> int:
    """The fewest blocks that fill whole pages."""
    return page_bytes // gcd(page_bytes, block_bytes_in_layer)


def plan_extents(
    settings: ModelSettings, budget: KvBudget, block_bytes: int, extent_blocks: int
) -> KvExtents:
    """For a model that has its place in the budget.

    Raises:
        ConfigError: its floor is too small for one extent.
    """
    unit_bytes = block_bytes * extent_blocks
    floor_bytes = budget.floor_bytes(settings.name)
    if 0 < floor_bytes < unit_bytes:
        raise ConfigError(
            f"models.{settings.name}.{budget.terms.floor_key}: memory moves in units of "
            f"{unit_bytes} bytes, and {floor_bytes} bytes hold none; give that, or 0"
        )
    return KvExtents(
        extent_blocks,
        floor_bytes // unit_bytes * unit_bytes,
        budget.reach_bytes(settings.name, unit_bytes),
    )


def plan_kv_capacity(
    settings: ModelSettings,
    bytes_per_token: int,
    max_positions: int,
    extents: KvExtents | None = None,
) -> tuple[int, int]:
    """How many blocks fit in the byte limit, and the longest sequence that may be served.

    With `extents` the blocks are whole ones of these, and the sequence fits in their reach.

    Raises:
        ConfigError: the limit is too small for one block, or for the `max_model_len` asked for.
    """
    block_bytes = bytes_per_token * settings.block_size
    at_once = 1 if extents is None else extents.num_blocks
    num_blocks = settings.device_kv_bytes // (block_bytes * at_once) * at_once
    if num_blocks < 1:
        raise ConfigError(
            f"models.{settings.name}.device_kv_bytes: {settings.device_kv_bytes} bytes "
            f"hold no KV block; "
            f"{_count(at_once)} of {settings.block_size} tokens takes {block_bytes * at_once} bytes"
        )
    num_usable = num_blocks
    if extents is not None:
        num_usable = min(num_blocks, extents.reach_bytes // block_bytes)
    capacity = num_usable * settings.block_size
    if min(capacity, max_positions) < 2:
        raise ConfigError(
            f"models.{settings.name}: {num_usable * block_bytes} bytes of KV hold {capacity} "
            f"tokens and the model has {max_positions} positions; prompt and output need 2"
        )
    if settings.max_model_len is None:
        return num_blocks, min(max_positions, capacity)
    if settings.max_model_len > max_positions:
        raise ConfigError(
            f"models.{settings.name}.max_model_len: {settings.max_model_len} is more than the "
            f"{max_positions} positions of the model"
        )
    if settings.max_model_len > capacity:
        needed = (
            f"fewer than one request of max_model_len {settings.max_model_len}, "
            f"which needs {settings.max_model_len * bytes_per_token} bytes"
        )
        if num_usable < num_blocks:
            raise ConfigError(
                f"models.{settings.name}.max_model_len: the {num_usable * block_bytes} bytes of "
                f"device.kv_bytes that are no other model's device_kv_floor_bytes hold {capacity} "
                f"tokens, {needed}"
            )
        raise ConfigError(
            f"models.{settings.name}.device_kv_bytes: {settings.device_kv_bytes} bytes "
            f"hold {capacity} tokens, {needed}"
        )
    return num_blocks, settings.max_model_len


def _count(num_blocks: int) -> str:
    return "one block" if num_blocks == 1 else f"the least, {num_blocks} blocks,"


def scheduler_settings(
    settings: ModelSettings,
    num_blocks: int,
    max_model_len: int,
    piggyback: PiggybackSettings | None,
    extent_blocks: int | None = None,
) -> SchedulerSettings:
    """What the scheduler of a model is told; `piggyback` is None where it cannot or must not."""
    return SchedulerSettings(
        num_blocks=num_blocks,
        block_size=settings.block_size,
        max_running_requests=settings.max_running_requests,
        max_step_tokens=settings.max_step_tokens,
        best_effort_tokens_beside_ls=settings.best_effort_tokens_beside_ls,
        max_model_len=max_model_len,
        prefix_caching=settings.prefix_caching,
        kv_reserve_share=settings.kv_reserve_share,
        extent_blocks=extent_blocks,
        piggyback=None if piggyback is None else piggyback_limits(piggyback, num_blocks),
    )
