"""What must hold between the KV budgets of all models and what each of them has of them."""

from collections.abc import Sequence
from typing import Protocol

from omniserve.config_piggyback import PiggybackConfig
from omniserve.config_section import Section
from omniserve.config_values import Size, format_size, refuse


class HostConfig(Section):
    """The memory of the machine, beside the device's."""

    kv_bytes: Size | None = None
    """KV memory of all models' offloaded requests together, which moves to where it is wanted;
    unset: every model has its piggyback.host_kv_bytes for itself."""


class _Model(Protocol):
    name: str
    device_kv_bytes: int
    device_kv_floor_bytes: int | None
    piggyback: PiggybackConfig


def check_kv_budget(num_bytes: int | None, models: Sequence[_Model]) -> None:
    """Raises PydanticCustomError for floors without a budget, or that are more than there is."""
    total = 0
    for index, model in enumerate(models):
        floor_bytes = model.device_kv_floor_bytes
        if floor_bytes is None:
            continue
        path = ("models", index, "device_kv_floor_bytes")
        if num_bytes is None:
            raise refuse("is a part of device.kv_bytes, which is not set", path)
        if floor_bytes > model.device_kv_bytes:
            most = format_size(model.device_kv_bytes)
            raise refuse(f"must be at most device_kv_bytes of the model, {most}", path)
        total += floor_bytes
        if total > num_bytes:
            text = (
                f"must leave all device_kv_floor_bytes together ({format_size(total)} up to here)"
            )
            raise refuse(f"{text} within device.kv_bytes, {format_size(num_bytes)}", path)


def check_host_kv_budget(num_bytes: int | None, models: Sequence[_Model]) -> None:
    """The same of the host's."""
    total = 0
    for index, model in enumerate(models):
        section = model.piggyback
        floor_bytes = section.host_kv_floor_bytes
        if floor_bytes is None:
            continue
        path = ("models", index, "piggyback", "host_kv_floor_bytes")
        if num_bytes is None:
            raise refuse("is a part of host.kv_bytes, which is not set", path)
        most_bytes = section.host_kv_bytes
        if most_bytes is not None and floor_bytes > most_bytes:
            most = format_size(most_bytes)
            raise refuse(f"must be at most host_kv_bytes of the model, {most}", path)
        total += floor_bytes if section.enabled is not False else 0
        if total > num_bytes:
            text = f"must leave all host_kv_floor_bytes together ({format_size(total)} up to here)"
            raise refuse(f"{text} within host.kv_bytes, {format_size(num_bytes)}", path)
