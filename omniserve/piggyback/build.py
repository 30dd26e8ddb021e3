"""From settings to models that piggyback."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from cpu_attn.host import HostKvPool, HostModel
from cpu_attn.kv_layout import KvLayout
from omniserve.devices.device import Device
from omniserve.devices.elements import ELEMENTS
from omniserve.errors import ConfigError
from omniserve.logs import get_logger, log_event
from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.calibration import measure_host_speed
from omniserve.piggyback.core_split import CoreSplit
from omniserve.piggyback.device_path import open_exchange, open_swapper
from omniserve.piggyback.governor import Governor
from omniserve.piggyback.host_link import HostLink
from omniserve.piggyback.lane_book import LaneBook
from omniserve.piggyback.runtime import Piggyback
from omniserve.settings import ModelSettings, PiggybackSettings
from scheduler import Scheduler

_LOG = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HostSide:
    """A model's memory on the host, and what the host process is told of it."""

    pool: HostKvPool
    model: HostModel


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model with a pool on the host."""

    name: str
    settings: PiggybackSettings
    host: HostSide
    model: DecoderModel
    scheduler: Scheduler
    kv_cache: Tensor
    set_block_table: Callable[[int, Sequence[int]], None]
    """Takes a device slot and the blocks of the request that is there."""


def open_host_side(
    settings: ModelSettings, model: DecoderModel, kv_cache: Tensor, max_model_len: int
) -> HostSide | None:
    """For a device cache [layers, blocks, 2, num_kv_heads, block_size, head_dim].

    None where the model does not piggyback, or no host kernel can serve it.

    Raises:
        ConfigError: a number is out of range, the pool holds no block, or the machine cannot map
            it.
    """
    if settings.piggyback is None:
        return None
    _require_sane(settings.name, settings.piggyback)
    num_layers, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    try:
        element = ELEMENTS[kv_cache.dtype]
        layout = KvLayout(element, num_layers, num_kv_heads, head_dim, block_size)
    except (KeyError, ValueError) as error:
        _say_unavailable(settings, error)
        return None
    pool = _open_pool(settings.name, settings.piggyback, layout, max_model_len)
    try:
        return HostSide(pool, _host_model(model, pool, max_model_len))
    except ValueError as error:
        pool.close()
        _say_unavailable(settings, error)
        return None


def _require_sane(name: str, settings: PiggybackSettings) -> None:
    """What a configuration file cannot say, but whoever makes settings in their own process."""
    least = {
        "host_kv_bytes": 1,
        "host_attention_threads": 1,
        "max_offloaded_requests": 1,
        "max_lane_rows": 1,
        "max_lane_rows_beside_ls": 0,
        "max_resident_decodes": 0,
        "binding_points": 1,
    }
    for field, lowest in least.items():
        value = getattr(settings, field)
        is_unset = value is None and field == "max_resident_decodes"
        if not is_unset and (type(value) is not int or value < lowest):
            raise ConfigError(
                f"models.{name}.piggyback.{field}: {value!r}, a whole number from {lowest} on is "
                "needed"
            )
    if not 0.0 <= settings.max_device_kv_share <= 1.0:
        share = settings.max_device_kv_share
        raise ConfigError(f"models.{name}.piggyback.max_device_kv_share: {share!r}, 0 to 1 allowed")
    if settings.when not in ("auto", "always"):
        raise ConfigError(
            f"models.{name}.piggyback.when: {settings.when!r}, auto or always allowed"
        )


def _open_pool(
    name: str, settings: PiggybackSettings, layout: KvLayout, max_model_len: int
) -> HostKvPool:
    num_bytes = settings.host_kv_bytes
    if num_bytes < layout.block_bytes:
        raise ConfigError(
            f"models.{name}.piggyback.host_kv_bytes: {num_bytes} bytes hold no KV block; one block "
            f"of {layout.block_size} tokens takes {layout.block_bytes} bytes"
        )
    try:
        pool = HostKvPool(layout, num_bytes)
    except (ValueError, OSError) as error:
        raise ConfigError(f"models.{name}.piggyback.host_kv_bytes: {error}") from error
    num_tokens = pool.num_blocks * layout.block_size
    if num_tokens < max_model_len - 1:
        log_event(
            _LOG,
            "host_pool_small",
            level=logging.WARNING,
            model=name,
            host_kv_tokens=num_tokens,
            max_model_len=max_model_len,
            effect="longer requests stay on the device",
        )
    return pool


def _host_model(model: DecoderModel, pool: HostKvPool, max_model_len: int) -> HostModel:
    return HostModel(
        pool=pool.memory,
        num_heads=model.num_heads,
        io=ELEMENTS[model.dtype],
        max_context_len=max_model_len,
        scale=model.head_dim**-0.5,
        windows=model.windows,
    )


def _say_unavailable(settings: ModelSettings, reason: Exception) -> None:
    log_event(
        _LOG,
        "piggyback_unavailable",
        level=logging.WARNING,
        model=settings.name,
        reason=str(reason),
    )


def host_cores(models: Sequence[HostedModel], device: Device) -> tuple[int, ...]:
    """The last cores of this process: as many as the model that asks for most.

    Raises:
        ConfigError: there are too few.
    """
    cores = sorted(os.sched_getaffinity(0))
    hungriest = max(models, key=lambda hosted: hosted.settings.host_attention_threads)
    num_threads = hungriest.settings.host_attention_threads
    num_left = len(cores) - (device.torch_device.type == "cpu")
    if num_threads > num_left:
        raise ConfigError(
            f"models.{hungriest.name}.piggyback.host_attention_threads: {num_threads} is more than "
            f"the {num_left} cores that this process can spare"
        )
    return tuple(cores[-num_threads:])


def build_piggybacks(
    models: Sequence[HostedModel], device: Device
) -> tuple[HostLink, dict[str, Piggyback]]:
    """One host process for all of them, started; and each one's own part, by name.

    Raises:
        ConfigError: there are too few cores, no memory or process is to be had, or the device's
            runtime cannot lock a host pool.
    """
    cores = host_cores(models, device)
    core_split = CoreSplit(cores) if device.torch_device.type == "cpu" else None
    # Before the process starts: compiling kernels it would disturb the measurement.
    governors = [_open_governor(hosted, core_split, len(cores)) for hosted in models]
    link = _open_link(models, cores, core_split)
    try:
        piggybacks = {
            hosted.name: _build_piggyback(index, hosted, link, cores, device, governor)
            for index, (hosted, governor) in enumerate(zip(models, governors, strict=True))
        }
    except BaseException:
        link.close()
        raise
    return link, piggybacks


def _open_link(
    models: Sequence[HostedModel], cores: Sequence[int], core_split: CoreSplit | None
) -> HostLink:
    num_lanes = max(hosted.settings.max_offloaded_requests for hosted in models)
    try:
        return HostLink([hosted.host.model for hosted in models], cores, num_lanes, core_split)
    except OSError as error:
        if core_split is not None:
            core_split.unite()
        names = ", ".join(hosted.name for hosted in models)
        raise ConfigError(f"piggyback of {names}: host attention cannot start: {error}") from error


def _build_piggyback(
    index: int,
    hosted: HostedModel,
    link: HostLink,
    cores: Sequence[int],
    device: Device,
    governor: Governor | None,
) -> Piggyback:
    model = hosted.model
    book = LaneBook(hosted.settings.max_offloaded_requests, model.num_layers)
    try:
        swapper = open_swapper(hosted.kv_cache, hosted.host.pool, cores)
    except OSError as error:
        raise ConfigError(f"models.{hosted.name}.piggyback.host_kv_bytes: {error}") from error
    return Piggyback(
        index,
        hosted.scheduler,
        book,
        open_exchange(
            link.host, index, model.hidden_size, model.dtype, device.torch_device, book.fail
        ),
        swapper,
        hosted.host.pool,
        link,
        hosted.set_block_table,
        device.torch_device,
        hosted.settings.binding_points,
        governor,
    )


def _open_governor(
    hosted: HostedModel, core_split: CoreSplit | None, num_threads: int
) -> Governor | None:
    """None where the host's cores cost the device nothing, or where it is not to be asked."""
    if core_split is None or not core_split.costs_device_threads:
        return None
    if hosted.settings.when == "always":
        return None
    speed = measure_host_speed(hosted.model, core_split, num_threads)
    return Governor(
        hosted.scheduler,
        speed,
        hosted.settings,
        hosted.model.num_layers,
        hosted.host.pool.layout.bytes_per_token,
    )
