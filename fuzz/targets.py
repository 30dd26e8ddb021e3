"""The surfaces that are fuzzed in this process, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fuzz.config_target import ConfigTarget
from fuzz.grpc_target import GrpcTarget
from fuzz.http_target import HttpTarget


class Target(Protocol):
    """Runs cases one after the other; a case is any bytes."""

    def run(self, data: bytes) -> None: ...
    def close(self) -> None: ...


TARGETS: dict[str, Callable[[Path], Target]] = {
    kind.name: kind for kind in (GrpcTarget, HttpTarget, ConfigTarget)
}
"""Each is made with the directory of a model's checkpoint."""
