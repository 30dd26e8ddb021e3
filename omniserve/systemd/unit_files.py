"""The text of the unit and its drop-ins, and how files are known to be ours."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

UNIT = "omniserve.service"
GPU_DROP_IN = f"{UNIT}.d/gpu.conf"
UNIT_FILES = (UNIT, GPU_DROP_IN)
"""All that may be installed, below the directory of units."""

_HEADER = "# Written by `omniserve install-service`. Changes belong into drop-ins: systemctl edit\n"
_DIGEST = "# sha256 of what follows: "


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """What differs between machines. The texts are checked already."""

    executable: str
    config: str
    cpus: str | None = None
    """As CPUAffinity= takes it; None: all."""
    has_gpu: bool = False


def unit_files(settings: UnitSettings) -> dict[str, str]:
    """The texts of the files that are to be there, by name."""
    values = {
        "@EXECUTABLE@": settings.executable,
        "@CONFIG@": settings.config,
        "@CPUS@": settings.cpus or "",
    }
    found = {UNIT: _signed(_filled(_resource("omniserve.service"), values))}
    if settings.has_gpu:
        found[GPU_DROP_IN] = _signed(_resource("gpu.conf"))
    return found


def is_ours(text: str) -> bool:
    """Whether `unit_files`, of whatever version, wrote exactly this."""
    start = _HEADER + _DIGEST
    digest, _, body = text.removeprefix(start).partition("\n")
    return text.startswith(start) and digest == _digest(body)


def _signed(body: str) -> str:
    return f"{_HEADER}{_DIGEST}{_digest(body)}\n{body}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _resource(name: str) -> str:
    return (files("omniserve.systemd") / "units" / name).read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """Without the lines whose value is empty: to systemd, that would be another meaning."""
    lines = []
    for line in template.splitlines(keepends=True):
        named = re.findall(r"@[A-Z]+@", line)
        if all(values[name] for name in named):
            lines.append(re.sub(r"@[A-Z]+@", lambda match: values[match[0]], line))
    return "".join(lines)
