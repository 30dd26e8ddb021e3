"""From settings to a model that is ready to step."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omniserve.checkpoint import is_token_id
from omniserve.devices.device import Device
from omniserve.engine.executor import Executor
from omniserve.engine.kv_pool import DeviceKvPool, allocate_kv_pool, kv_bytes_per_token
from omniserve.engine.kv_sharing import KvBudgets, KvSharing
from omniserve.engine.load_log import LoadLog
from omniserve.engine.model_memory import dtype_of, require_memory, require_room
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.policy_settings import (
    blocks_per_extent,
    plan_extents,
    plan_kv_capacity,
    scheduler_settings,
)
from omniserve.engine.step_graphs import GraphSettings
from omniserve.engine.text import TextModel
from omniserve.errors import CheckpointError
from omniserve.models.kept_weights import KeptModel, RecalledWeights
from omniserve.models.linear import can_pack
from omniserve.models.loading import load_config, open_model, read_model, recall_model
from omniserve.models.model_digest import model_digest
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.piggyback.build import (
    HostedModel,
    build_piggybacks,
    open_host_side,
)
from omniserve.piggyback.host_link import HostLink
from omniserve.piggyback.runtime import Piggyback
from omniserve.regular_file import read_small_file
from omniserve.settings import EngineSettings, LoadPhase, ModelInfo, ModelSettings
from scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """One loaded model and everything of it that stands on its own."""

    info: ModelInfo
    executor: Executor
    scheduler: Scheduler
    kv_pool: DeviceKvPool
    num_blocks: int
    """Of the pool, as the scheduler knows them."""
    text: TextModel
    hosted: HostedModel | None
    """None where the model does not piggyback."""

    def take_apart(self) -> Iterator[None]:
        """It comes to nothing: drops what is large, piece by piece."""
        if self.hosted is not None:
            yield from self.hosted.host.pool.discard_in_pieces()
            self.hosted.host.pool.close()
        yield from self.executor.take_apart()
        self.kv_pool.close()


Progress = Callable[[LoadPhase, int, int], None]
"""Told the phase of a load, and how many bytes of how many are read; may end the load by raising
what it likes."""


def build_runtimes(
    settings: EngineSettings, device: Device, store: WeightStore, kv_sharing: KvSharing
) -> tuple[dict[str, ModelRuntime], HostLink | None]:
    """Loads the models, which share their weights in `store`; with a host link where one of them
    piggybacks.

    Raises:
        CheckpointError: a checkpoint cannot be loaded.
        ConfigError: a KV limit is too small, or more than device or host can allocate.
    """
    kv_sharing.expect(*settings.models)
    kv_sharing.expect_later(settings.asleep)
    built = [
        build_model(model, device, store, kv_sharing.budgets, LoadLog(model.name))
        for model in settings.models
    ]
    hosted = [part.hosted for part in built if part.hosted is not None]
    link: HostLink | None = None
    piggybacks: dict[str, Piggyback] = {}
    if hosted:
        link, piggybacks = build_piggybacks(hosted, device, settings.asleep_piggybacks)
    runtimes = {
        part.info.name: make_runtime(part, device, piggybacks.get(part.info.name)) for part in built
    }
    for part in built:
        join_kv(kv_sharing, part, runtimes[part.info.name])
    return runtimes, link


def join_kv(kv_sharing: KvSharing, part: BuiltModel, runtime: ModelRuntime) -> None:
    """An expected model takes its part in the KV budgets, where there are any."""
    host = None if part.hosted is None else part.hosted.host
    kv_sharing.join(runtime, part.kv_pool, part.num_blocks, host)


def make_runtime(part: BuiltModel, device: Device, piggyback: Piggyback | None) -> ModelRuntime:
    """What steps a model that is built."""
    return ModelRuntime(
        part.info,
        part.executor,
        part.scheduler,
        part.kv_pool,
        part.text,
        device.pipeline_depth,
        piggyback,
    )


def build_model(
    settings: ModelSettings,
    device: Device,
    store: WeightStore,
    budgets: KvBudgets,
    progress: Progress,
    kept: KeptModel | None = None,
) -> BuiltModel:
    """Checks all that can be checked, then reads the weights and allocates. In any thread. Weights
    that were `kept` while the model slept are not read.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: an unknown dtype, a KV limit that is too small, or more than the memory that
            is free.
    """
    progress("checking", 0, 0)
    path = Path(settings.checkpoint_path)
    config = load_config(path)
    dtype = dtype_of(settings)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = kv_bytes_per_token(
        config.num_hidden_layers, config.num_key_value_heads, head_dim, dtype
    )
    # Refused before the weights are read, which may take minutes.
    extents = None
    block_bytes = bytes_per_token * settings.block_size
    if budgets.device is not None:
        extents = plan_extents(
            settings,
            budgets.device,
            block_bytes,
            blocks_per_extent(block_bytes // config.num_hidden_layers, device.elastic_page_bytes()),
        )
    num_blocks, max_model_len = plan_kv_capacity(
        settings, bytes_per_token, config.max_position_embeddings, extents
    )
    host_budget = budgets.host_part(settings, block_bytes)
    text = TextModel.load(path)
    eos_token_ids = _eos_token_ids(path, config)
    adapter = None if settings.adapter_path is None else Path(settings.adapter_path)
    opened = open_model(path, config, adapter)
    require_memory(settings, opened, device.torch_device, store)
    # What is imported before is there for the next one.
    began_s = time.monotonic()
    room = partial(require_room, settings, device.torch_device)
    row_ops, on_read = device.row_ops(dtype), partial(progress, "reading")
    if kept is None:
        is_packed = can_pack(device.torch_device, dtype)
        weights = ModelWeights(store, device.torch_device, is_packed, room)
        model = read_model(opened, weights, dtype, max_model_len, row_ops, on_read)
    else:
        recalled = RecalledWeights(store, device.torch_device, kept, room, on_read)
        model = recall_model(opened, recalled, max_model_len, row_ops)
    capture = device.graph_capture()
    # One block more than the scheduler knows: the scratch block of captured graphs.
    num_scratch = 0 if capture is None else 1
    extent_blocks = None if extents is None else extents.num_blocks
    kv_pool = allocate_kv_pool(settings, model, num_blocks, num_scratch, device, extent_blocks)
    host = open_host_side(settings, model, kv_pool.cache, max_model_len, host_budget)
    piggyback = settings.piggyback if host is not None else None
    graphs = None
    if capture is not None:
        max_lane_rows = 0 if piggyback is None else piggyback.max_lane_rows
        graphs = GraphSettings(capture, scratch_block=num_blocks, max_lane_rows=max_lane_rows)
    executor = Executor(
        model,
        device.attention(kv_pool.cache, model.windows, model.num_heads),
        settings.block_size,
        settings.max_running_requests,
        max_model_len,
        device.torch_device,
        graphs,
    )
    scheduler = Scheduler(
        scheduler_settings(settings, num_blocks, max_model_len, piggyback, extent_blocks),
        None if host is None else host.blocks,
        settings.step_time,
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
        eos_token_ids=eos_token_ids,
        num_layers=config.num_hidden_layers,
        kv_floor_bytes=None if extents is None else extents.floor_bytes,
        host_kv_floor_bytes=None if host_budget is None else host_budget.floor_bytes,
        digest=model_digest(settings, model.weights.digests),
        load_s=time.monotonic() - began_s,
    )
    hosted = None
    if host is not None and piggyback is not None:
        hosted = HostedModel(
            settings.name,
            piggyback,
            host,
            model,
            scheduler,
            kv_pool.cache,
            executor.set_block_table,
        )
    return BuiltModel(info, executor, scheduler, kv_pool, num_blocks, text, hosted)


def _eos_token_ids(path: Path, config: Any) -> tuple[int, ...]:
    """generation_config.json names them, else config.json."""
    file = path / "generation_config.json"
    try:
        generation = json.loads(read_small_file(file)) if file.exists() else {}
        ids = generation.get("eos_token_id", config.eos_token_id)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a usable generation config: {error}") from None
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    if not all(is_token_id(each) for each in ids):
        raise CheckpointError(f"{file}: eos_token_id is {ids!r:.80}, not one or several token ids")
    return tuple(ids)
