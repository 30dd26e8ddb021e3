"""From settings to models that piggyback."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from cpu_attn.host import HostKvPool, HostModel
from cpu_attn.kv_layout import KvLayout
from omniserve.devices.device import Device
from omniserve.devices.elements import ELEMENTS
from omniserve.errors import ConfigError
from omniserve.logs import get_logger, log_event
from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.core_split import CoreSplit
from omniserve.piggyback.device_path import open_exchange, open_swapper
from omniserve.piggyback.governor import Governor
from omniserve.piggyback.host_link import HostLink
from omniserve.piggyback.host_side import HostBudget, HostSide
from omniserve.piggyback.lane_book import LaneBook
from omniserve.piggyback.place import host_cores, require_lanes, require_sane
from omniserve.piggyback.runtime import Piggyback
from omniserve.settings import ModelSettings, PiggybackSettings
from scheduler import HostBlocks, Scheduler
from scheduler.elastic_host_blocks import ElasticHostBlocks

_LOG = get_logger(__name__)

_NONE_LATER: Mapping[str, PiggybackSettings] = MappingProxyType({})


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
    settings: ModelSettings,
    model: DecoderModel,
    kv_cache: Tensor,
    max_model_len: int,
    budget: HostBudget | None = None,
) -> HostSide | None:
    """For a device cache [layers, blocks, 2, num_kv_heads, block_size, head_dim].

    budget: of the models that share the host's memory, the place of this one.

    None where the model does not piggyback, or no host kernel can serve it.

    Raises:
        ConfigError: a number is out of range, the pool holds no block, or the machine cannot map
            it.
    """
    if settings.piggyback is None:
        return None
    require_sane(settings.name, settings.piggyback)
    num_layers, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    try:
        element = ELEMENTS[kv_cache.dtype]
        layout = KvLayout(element, num_layers, num_kv_heads, head_dim, block_size)
    except (KeyError, ValueError) as error:
        _say_unavailable(settings, error)
        return None
    pool = _open_pool(settings.name, settings.piggyback, layout, budget)
    blocks: HostBlocks = pool
    if budget is not None:
        blocks = ElasticHostBlocks(
            pool.num_blocks, layout.block_size, budget.extent_blocks, budget.num_reachable
        )
    _warn_of_few(settings.name, blocks.num_blocks * layout.block_size, max_model_len)
    try:
        return HostSide(pool, blocks, _host_model(model, pool, max_model_len))
    except ValueError as error:
        pool.close()
        _say_unavailable(settings, error)
        return None


def _open_pool(
    name: str, settings: PiggybackSettings, layout: KvLayout, budget: HostBudget | None
) -> HostKvPool:
    at_once = 1 if budget is None else budget.extent_blocks
    unit_bytes = layout.block_bytes * at_once
    num_bytes = settings.host_kv_bytes // unit_bytes * unit_bytes
    if not num_bytes:
        blocks = "one block" if at_once == 1 else f"the least, {at_once} blocks,"
        raise ConfigError(
            f"models.{name}.piggyback.host_kv_bytes: {settings.host_kv_bytes} bytes hold no KV "
            f"block; {blocks} of {layout.block_size} tokens takes {unit_bytes} bytes"
        )
    try:
        return HostKvPool(layout, num_bytes)
    except (ValueError, OSError) as error:
        raise ConfigError(f"models.{name}.piggyback.host_kv_bytes: {error}") from error


def _warn_of_few(name: str, num_tokens: int, max_model_len: int) -> None:
    """`num_tokens` is what a model can have on the host."""
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


def build_piggybacks(
    models: Sequence[HostedModel],
    device: Device,
    later: Mapping[str, PiggybackSettings] = _NONE_LATER,
) -> tuple[HostLink, dict[str, Piggyback]]:
    """One host process for all of them, with room for those that come `later`, started; and each
    one's own part, by name.

    Raises:
        ConfigError: there are too few cores, no memory or process is to be had, or the device's
            runtime cannot lock a host pool.
    """
    link = open_link({**later, **{each.name: each.settings for each in models}}, device)
    try:
        # Before the process starts: compiling kernels it would disturb the measurement.
        for hosted in models:
            if _has_governor(hosted, link) and link.speeds.of(hosted.model) is None:
                assert link.core_split is not None
                link.speeds.begin(hosted.model, link.core_split, link.num_cores).finish()
        piggybacks = {hosted.name: add_piggyback(hosted, link, device) for hosted in models}
        _start(link, piggybacks)
    except BaseException:
        link.close()
        raise
    return link, piggybacks


def open_piggyback(
    hosted: HostedModel, device: Device, later: Mapping[str, PiggybackSettings] = _NONE_LATER
) -> tuple[HostLink, Piggyback]:
    """For the first model that piggybacks on an engine that runs: as `add_piggyback`, with a host
    process, with room for those that come `later`, started, that is not waited for either.

    Raises:
        ConfigError: as `open_link` and `add_piggyback` say.
    """
    link = open_link({**later, hosted.name: hosted.settings}, device)
    try:
        piggyback = add_piggyback(hosted, link, device)
        _start(link, [hosted.name])
    except BaseException:
        link.close()
        raise
    return link, piggyback


def open_link(models: Mapping[str, PiggybackSettings], device: Device) -> HostLink:
    """A host process without models, not started: with the cores and lanes of the model that asks
    for most. Those that come later get no more.

    models: by name; one at least.

    Raises:
        ConfigError: there are too few cores, or no memory.
    """
    cores = host_cores(models, device)
    core_split = CoreSplit(cores) if device.torch_device.type == "cpu" else None
    num_lanes = max(settings.max_offloaded_requests for settings in models.values())
    try:
        return HostLink(cores, num_lanes, core_split)
    except OSError as error:
        if core_split is not None:
            core_split.unite()
        raise _cannot_start(models, error) from error


def add_piggyback(hosted: HostedModel, link: HostLink, device: Device) -> Piggyback:
    """A model's own part, while others work; never waits for the host process.

    Nothing of the model is offloaded until the process has its kernel, and until speeds are
    measured where they decide: no model of its shape was measured yet, and `poll` does it, a layer
    at a time. `Piggyback.leave` takes the model away again.

    Raises:
        ConfigError: it asks for more lanes than the process has, no memory is to be had, or the
            device's runtime cannot lock the host pool. Nothing is left of it then but the pool.
    """
    require_lanes(hosted.name, hosted.settings, link)
    book = LaneBook(hosted.settings.max_offloaded_requests, hosted.model.num_layers)
    try:
        index = link.add(hosted.host.model, book)
    except (OSError, ValueError) as error:
        raise ConfigError(f"models.{hosted.name}.piggyback: {error}") from error
    try:
        return _build_piggyback(index, hosted, link, device, book)
    except BaseException:
        link.remove(index)
        raise


def _start(link: HostLink, names: Iterable[str]) -> None:
    try:
        link.start()
    except OSError as error:
        raise _cannot_start(names, error) from error


def _cannot_start(names: Iterable[str], error: OSError) -> ConfigError:
    return ConfigError(f"piggyback of {', '.join(names)}: host attention cannot start: {error}")


def _build_piggyback(
    index: int, hosted: HostedModel, link: HostLink, device: Device, book: LaneBook
) -> Piggyback:
    model = hosted.model
    exchange = open_exchange(
        link.host, index, model.hidden_size, model.dtype, device.torch_device, book.fail
    )
    try:
        swapper = open_swapper(hosted.kv_cache, hosted.host.pool, link.cores)
    except OSError as error:
        raise ConfigError(f"models.{hosted.name}.piggyback.host_kv_bytes: {error}") from error
    return Piggyback(
        index,
        hosted.scheduler,
        book,
        exchange,
        swapper,
        hosted.host,
        link,
        hosted.set_block_table,
        device.torch_device,
        hosted.settings.binding_points,
        _open_governor(hosted, link) if _has_governor(hosted, link) else None,
    )


def _has_governor(hosted: HostedModel, link: HostLink) -> bool:
    """Not where the host's cores cost the device nothing, or where it is not to be asked."""
    return link.costs_device_threads and hosted.settings.when != "always"


def _open_governor(hosted: HostedModel, link: HostLink) -> Governor:
    speed = link.speeds.of(hosted.model)
    measurement = None
    if speed is None:
        assert link.core_split is not None
        measurement = link.speeds.begin(hosted.model, link.core_split, link.num_cores)
    return Governor(
        hosted.scheduler,
        speed,
        hosted.settings,
        hosted.model.num_layers,
        hosted.host.pool.layout.bytes_per_token,
        measurement=measurement,
    )
