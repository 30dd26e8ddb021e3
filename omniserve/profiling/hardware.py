"""What this process would measure step times of."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from cpu_attn import isa
from omniserve import __version__
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
        architecture=_digest(Path(model.path) / "config.json"),
        block_size=model.block_size,
        max_step_tokens=model.max_step_tokens,
        max_running_requests=model.max_running_requests,
        host_attention_threads=0 if piggyback is None else piggyback.host_attention_threads,
        torch=version("torch"),
        omniserve=__version__,
    )


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


def _digest(config: Path) -> str:
    try:
        return hashlib.sha256(config.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{config}: cannot be read: {error.strerror}") from None
