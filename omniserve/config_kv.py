"""What must hold between the KV budget of all models and what each of them has of it."""

from collections.abc import Sequence
from typing import Protocol

from omniserve.config_values import format_size, refuse


class _Model(Protocol):
    name: str
    device_kv_bytes: int
    device_kv_floor_bytes: int | None


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
