"""What a model's settings say of its part in a KV budget: the device's, or the host's."""

from collections.abc import Callable
from dataclasses import dataclass

from omniserve.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class KvPart:
    """Of one model."""

    most_bytes: int
    floor_bytes: int | None
    """None: half of an even share."""


@dataclass(frozen=True, slots=True)
class KvBudgetTerms:
    """Keys as messages name them, and where the values stand."""

    budget_key: str
    floor_key: str
    """In a model's section."""
    part_of: Callable[[ModelSettings], KvPart | None]
    """None: it has no part."""


def _device_part(model: ModelSettings) -> KvPart:
    return KvPart(model.device_kv_bytes, model.device_kv_floor_bytes)


def _host_part(model: ModelSettings) -> KvPart | None:
    piggyback = model.piggyback
    if piggyback is None:
        return None
    return KvPart(piggyback.host_kv_bytes, piggyback.host_kv_floor_bytes)


DEVICE_KV = KvBudgetTerms("device.kv_bytes", "device_kv_floor_bytes", _device_part)
HOST_KV = KvBudgetTerms("host.kv_bytes", "piggyback.host_kv_floor_bytes", _host_part)
