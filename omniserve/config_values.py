"""Values that a configuration writes in a form of its own: sizes, addresses, names."""

import ipaddress
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from omniserve.access.bearer_token import without_tokens
from omniserve.config_file import KeyPath

_SIZE_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,6})? ?(KiB|MiB|GiB)$"
_MAX_SIZE_BYTES = 1 << 50
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$"
_HOST_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$"


def refuse(text: str, path: KeyPath = ()) -> PydanticCustomError:
    """An error of our own wording; `path` leads from the value being validated to the culprit."""
    context: dict[str, Any] = {"text": text.replace("{", "(").replace("}", ")"), "path": path}
    return PydanticCustomError("omniserve", "{text}", context)


def parse_size(value: object) -> int:
    """Bytes, from a whole number or from a text such as `1.5GiB`."""
    allowed = "must be a positive whole number of bytes or a number with KiB, MiB or GiB"
    if isinstance(value, str) and re.fullmatch(_SIZE_PATTERN, value):
        number, unit = value[:-3].strip(), value[-3:]
        exact = Decimal(number) * _SIZE_UNITS[unit]
        value = int(exact) if exact == int(exact) else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refuse(allowed)
    if value > _MAX_SIZE_BYTES:
        raise refuse(f"must be at most {format_size(_MAX_SIZE_BYTES)}")
    return value


def format_size(num_bytes: int) -> int | str:
    """The inverse of `parse_size`: the largest unit that divides, else plain bytes."""
    for unit, factor in reversed(_SIZE_UNITS.items()):
        if num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit}"
    return num_bytes


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    if not separator or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("the port is not a number from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    if re.fullmatch(r"[0-9.]+", host):
        return str(ipaddress.IPv4Address(host)), int(port)
    if not re.fullmatch(_HOST_PATTERN, host):
        raise ValueError("the host is not a name or an IP address")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a `host:port` address."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_address(value: str) -> str:
    try:
        split_address(value)
    except ValueError:
        raise refuse(
            "must be host:port, port 0 to 65535, for example 127.0.0.1:8000 or [::1]:8000"
        ) from None
    return value


def _check_name(value: str) -> str:
    if not re.fullmatch(_NAME_PATTERN, value):
        raise refuse(
            "must be 1 to 128 letters, digits and . _ / : - and start with a letter or digit"
        )
    if without_tokens(value) != value:
        raise refuse("must not look like a token: names are in answers, logs and metrics")
    return value


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=int | str),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE_PATTERN}]}
    ),
]
SizeOrZero = Annotated[
    int,
    BeforeValidator(lambda value: 0 if type(value) is int and value == 0 else parse_size(value)),
    PlainSerializer(lambda value: value and format_size(value), return_type=int | str),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE_PATTERN}]}
    ),
]
"""A size, or 0."""
Address = Annotated[str, AfterValidator(_check_address)]
Name = Annotated[
    str, AfterValidator(_check_name), Field(json_schema_extra={"pattern": _NAME_PATTERN})
]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
