"""What this process would measure step times of."""

import hashlib
import os
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from cpu_attn import isa
from omniserve import __version__
from omniserve.adapter_config import CONFIG_NAME
from omniserve.errors import CheckpointError
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.settings import ModelSettings

_CPU_FACTS = Path("/proc/cpuinfo")
_NAMES = ("model name", "Model", "CPU implementer")
"""What x86 and ARM machines call theirs."""


def count_cores() -> int:
    """That this process may use; an engine leaves some of them to host attention later."""
    return len(os.sched_getaffinity(0))


def measured_on(model: ModelSettings, device: str, num_cores: int) -> MeasuredOn:
    """A model as `alone` makes it, and the device in the words of the engine.

    Raises CheckpointError.
    """
    piggyback = model.piggyback
    return MeasuredOn(
        cpu=cpu_name(),
        vector_path=isa.active().name,
        num_cores=num_cores,
        device=device,
        dtype=model.dtype,
        architecture=_architecture(model),
        block_size=model.block_size,
        max_step_tokens=model.max_step_tokens,
        max_running_requests=model.max_running_requests,
        host_attention_threads=0 if piggyback is None else piggyback.host_attention_threads,
        torch=version("torch"),
        omniserve=__version__,
    )


def measured_on_base(model: ModelSettings, of: MeasuredOn) -> MeasuredOn | None:
    """The same of the base where the model, of which `of` is, is an adapter; else None.

    What an adapter adds to a step is little beside it, and is learnt as it runs.
    """
    if model.base is None:
        return None
    return replace(of, architecture=_architecture(replace(model, path=model.base, base=None)))


def cpu_name(facts: Path = _CPU_FACTS) -> str:
    """As the kernel tells it; else the machine's architecture."""
    try:
        lines = facts.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    told = dict(_fact(line) for line in reversed(lines))
    return next((told[name] for name in _NAMES if told.get(name)), platform.machine())


def _fact(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _architecture(model: ModelSettings) -> str:
    configs = [Path(model.checkpoint_path) / "config.json"]
    if model.adapter_path is not None:
        configs.append(Path(model.adapter_path) / CONFIG_NAME)
    digest = hashlib.sha256()
    for config in configs:
        try:
            digest.update(config.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{config}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
