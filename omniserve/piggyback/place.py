"""Whether a model can piggyback beside those that do, asked before anything of it is read."""

import os
from collections.abc import Mapping

from cpu_attn.host.descriptor import MAX_MODELS
from omniserve.devices.device import Device
from omniserve.errors import ConfigError
from omniserve.piggyback.host_link import HostLink
from omniserve.settings import ModelSettings, PiggybackSettings


def require_place(settings: ModelSettings, link: HostLink | None, device: Device) -> None:
    """`link` is the host process of the models that run; None where none of them piggybacks.

    Raises:
        ConfigError: a number is out of range, there are as many models as the process takes, or
            too few cores or lanes.
    """
    if settings.piggyback is None:
        return
    require_sane(settings.name, settings.piggyback)
    if link is None:
        host_cores({settings.name: settings.piggyback}, device)
        return
    if not link.has_room:
        raise ConfigError(
            f"models.{settings.name}.piggyback: must have enabled: false, as {MAX_MODELS} models "
            "piggyback already and no more can"
        )
    require_lanes(settings.name, settings.piggyback, link)


def require_sane(name: str, settings: PiggybackSettings) -> None:
    """What a configuration file cannot say, but whoever makes settings in their own process.

    Raises ConfigError.
    """
    least = {
        "host_kv_bytes": 1,
        "host_attention_threads": 1,
        "max_offloaded_requests": 1,
        "max_lane_rows": 1,
        "max_lane_rows_beside_ls": 0,
        "max_resident_decodes": 0,
        "binding_points": 1,
        "host_kv_floor_bytes": 0,
    }
    for field, lowest in least.items():
        value = getattr(settings, field)
        is_unset = value is None and field in ("max_resident_decodes", "host_kv_floor_bytes")
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


def host_cores(models: Mapping[str, PiggybackSettings], device: Device) -> tuple[int, ...]:
    """The last cores of this process: as many as the model that asks for most.

    Raises:
        ConfigError: there are too few.
    """
    cores = sorted(os.sched_getaffinity(0))
    hungriest = max(models, key=lambda name: models[name].host_attention_threads)
    num_threads = models[hungriest].host_attention_threads
    num_left = len(cores) - (device.torch_device.type == "cpu")
    if num_threads > num_left:
        raise ConfigError(
            f"models.{hungriest}.piggyback.host_attention_threads: {num_threads} is more than "
            f"the {num_left} cores that this process can spare"
        )
    return tuple(cores[-num_threads:])


def require_lanes(name: str, settings: PiggybackSettings, link: HostLink) -> None:
    """Raises ConfigError where the process has fewer lanes than the model asks for."""
    num_lanes = settings.max_offloaded_requests
    if num_lanes > link.num_lanes:
        raise ConfigError(
            f"models.{name}.piggyback.max_offloaded_requests: {num_lanes} is more than the "
            f"{link.num_lanes} that the models at the start of the engine asked for"
        )
