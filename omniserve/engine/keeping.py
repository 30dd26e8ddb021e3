"""Weights of models that sleep, where the device has memory of its own."""

import logging
from collections.abc import Iterator

import torch

from omniserve.engine.memory_return import Remains
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.logs import get_logger, log_event
from omniserve.memory_limit import available_bytes
from omniserve.models.kept_weights import KeptModel, KeptStore, KeptWeight

_LOG = get_logger(__name__)


def keeps_weights(device: torch.device) -> bool:
    """Whether weights that leave the device are worth keeping: a CPU device computes in the memory
    that they would be kept in."""
    return device.type != "cpu"


class KeptModels:
    """Of one engine. Models come here from threads, sometimes several at once."""

    def __init__(self) -> None:
        self._store = KeptStore()
        self._models: dict[str, KeptModel] = {}

    def remains(self, runtime: ModelRuntime) -> Remains:
        """What is left of a model that falls asleep; taken apart, its weights are kept first."""
        return _Keeping(self, runtime)

    def take(self, model: str) -> KeptModel | None:
        """What was kept of it, which is the caller's from now on; None where nothing was."""
        return self._models.pop(model, None)

    def keep(self, runtime: ModelRuntime) -> Iterator[None]:
        """Copies weight by weight; where host memory lacks, nothing is kept."""
        name, weights = runtime.info.name, runtime.weights
        if runtime.is_adapter:
            # Its own part is small, and that of its base mostly there.
            return
        lacking_bytes, free_bytes = self._store.lacking_bytes(weights), available_bytes()
        kept: dict[bytes, KeptWeight] = {}
        try:
            if lacking_bytes > free_bytes:
                raise MemoryError
            yield from self._store.keep(weights, kept, _require_room)
        except (MemoryError, RuntimeError):
            # torch has no error of its own for host memory that cannot be had.
            log_event(
                _LOG,
                "weights_not_kept",
                level=logging.WARNING,
                model=name,
                lacking_bytes=lacking_bytes,
                free_bytes=free_bytes,
                effect="a wake reads the checkpoint's files",
            )
            return
        self._models[name] = KeptModel(weights.order, kept, weights.has_tied_head)


def _require_room(num_bytes: int) -> None:
    """Before each weight: others take memory meanwhile, models that fall asleep as well."""
    if num_bytes > available_bytes():
        raise MemoryError


class _Keeping:
    def __init__(self, models: KeptModels, runtime: ModelRuntime) -> None:
        self._models = models
        self._runtime: ModelRuntime | None = runtime

    def take_apart(self) -> Iterator[None]:
        runtime, self._runtime = self._runtime, None
        assert runtime is not None
        yield from self._models.keep(runtime)
        yield from runtime.take_apart()
