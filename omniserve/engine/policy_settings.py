"""From the settings of a model to those of its scheduler; the simulator needs them too."""

from omniserve.errors import ConfigError
from omniserve.piggyback.limits import piggyback_limits
from omniserve.settings import ModelSettings, PiggybackSettings
from scheduler import SchedulerSettings


def plan_kv_capacity(
    settings: ModelSettings, bytes_per_token: int, max_positions: int
) -> tuple[int, int]:
    """How many blocks fit in the byte limit, and the longest sequence that may be served.

    Raises:
        ConfigError: the limit is too small for one block, or for the `max_model_len` asked for.
    """
    block_bytes = bytes_per_token * settings.block_size
    num_blocks = settings.device_kv_bytes // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"models.{settings.name}.device_kv_bytes: {settings.device_kv_bytes} bytes "
            f"hold no KV block; "
            f"one block of {settings.block_size} tokens takes {block_bytes} bytes"
        )
    capacity = num_blocks * settings.block_size
    if min(capacity, max_positions) < 2:
        raise ConfigError(
            f"models.{settings.name}: {settings.device_kv_bytes} bytes of KV hold {capacity} "
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
        raise ConfigError(
            f"models.{settings.name}.device_kv_bytes: {settings.device_kv_bytes} bytes "
            f"hold {capacity} tokens, "
            f"fewer than one request of max_model_len {settings.max_model_len}, "
            f"which needs {settings.max_model_len * bytes_per_token} bytes"
        )
    return num_blocks, settings.max_model_len


def scheduler_settings(
    settings: ModelSettings,
    num_blocks: int,
    max_model_len: int,
    piggyback: PiggybackSettings | None,
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
        piggyback=None if piggyback is None else piggyback_limits(piggyback, num_blocks),
    )
