"""From settings to a model that is ready to step."""

import json
from pathlib import Path
from typing import Any

from omniserve.devices.device import Device
from omniserve.engine.executor import Executor
from omniserve.engine.kv_pool import allocate_kv_pool, kv_bytes_per_token, plan_kv_capacity
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.text import TextModel
from omniserve.errors import CheckpointError
from omniserve.models.loading import DTYPES, load_config, load_model
from omniserve.settings import ModelInfo, ModelSettings
from scheduler import Scheduler, SchedulerSettings


def build_runtime(settings: ModelSettings, device: Device) -> ModelRuntime:
    """Loads one model and everything that serves it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: the KV limit is too small, or more than the device can allocate.
    """
    path = Path(settings.path)
    config = load_config(path)
    dtype = DTYPES[settings.dtype]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = kv_bytes_per_token(
        config.num_hidden_layers, config.num_key_value_heads, head_dim, dtype
    )
    # Refused before the weights are read, which may take minutes.
    num_blocks, max_model_len = plan_kv_capacity(
        settings, bytes_per_token, config.max_position_embeddings
    )
    model = load_model(
        path, config, dtype, device.torch_device, max_model_len, device.row_ops(dtype)
    )
    kv_pool = allocate_kv_pool(settings, model, num_blocks, device.torch_device)
    executor = Executor(
        model,
        device.attention(kv_pool.cache, model.windows, model.num_heads),
        settings.block_size,
        settings.max_running_requests,
        max_model_len,
        device.torch_device,
    )
    scheduler = Scheduler(
        SchedulerSettings(
            num_blocks=num_blocks,
            block_size=settings.block_size,
            max_running_requests=settings.max_running_requests,
            max_step_tokens=settings.max_step_tokens,
            best_effort_tokens_beside_ls=settings.best_effort_tokens_beside_ls,
            max_model_len=max_model_len,
            prefix_caching=settings.prefix_caching,
        )
    )
    info = ModelInfo(
        name=settings.name,
        architecture=model.architecture,
        dtype=settings.dtype,
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        kv_bytes_per_token=bytes_per_token,
        device_kv_bytes=kv_pool.num_bytes,
        num_parameters=model.num_parameters,
        eos_token_ids=_eos_token_ids(path, config),
    )
    text = TextModel.load(path)
    return ModelRuntime(info, model, executor, scheduler, kv_pool, text, device.pipeline_depth)


def _eos_token_ids(path: Path, config: Any) -> tuple[int, ...]:
    """generation_config.json names them, else config.json."""
    file = path / "generation_config.json"
    try:
        generation = json.loads(file.read_text("utf-8")) if file.exists() else {}
        ids = generation.get("eos_token_id", config.eos_token_id)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a usable generation config: {error}") from None
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    if not all(type(token_id) is int for token_id in ids):
        raise CheckpointError(f"{file}: eos_token_id is {ids!r}, not one or several token ids")
    return tuple(ids)
