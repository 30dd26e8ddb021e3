"""Checks what `install-service` is told before anything of it gets into a unit."""

import os
import re
import stat
import sys
from pathlib import Path

from omniserve.errors import ConfigError

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""Directories that the unit does not see, or sees empty."""
MAX_CPU = 8191
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+@/-]*[A-Za-z0-9._+-]")


def check_path(option: str, path: str) -> str:
    """A path as it may stand in a unit, where spaces, % and $ would mean something else."""
    if not _PLAIN_PATH.fullmatch(path) or ".." in path.split("/"):
        allowed = "an absolute path of letters, digits and . _ + @ -"
        raise ConfigError(f"{option} {ascii(path[:128])}: must be {allowed}")
    return path


def check_cpus(text: str, available: set[int] | None) -> str:
    """Numbers and ranges such as 0-3,8; of this machine, where that is known."""
    allowed = "must be numbers and ranges of CPUs, for example 0-3,8"
    cpus: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        low = int(found[1]) if found else 1
        high = int(found[2] or low) if found else 0
        if not low <= high <= MAX_CPU:
            raise ConfigError(f"--cpus {ascii(text[:128])}: {allowed}")
        cpus.update(range(low, high + 1))
    if available is not None and not cpus <= available:
        missing = ", ".join(str(cpu) for cpu in sorted(cpus - available)[:8])
        raise ConfigError(f"--cpus {text}: CPU {missing} is not there; {allowed}")
    return text


def this_executable() -> str:
    """The command of this installation. Raises ConfigError where it runs without one."""
    # Not resolved: in a virtual environment, Python itself is a link to another place.
    path = Path(sys.executable).parent / "omniserve"
    if not path.is_file():
        raise ConfigError(f"{path} is not there; name the installed command with --executable")
    return str(path)


def check_visible(option: str, path: Path) -> None:
    """Raises ConfigError where the unit, as a user of its own, could not use this file."""
    for place in {path, path.resolve()}:
        hidden = next((each for each in HIDDEN if place.is_relative_to(each)), None)
        if hidden is not None:
            advice = "install it elsewhere, for example with python3 -m venv /opt/omniserve"
            raise ConfigError(f"{option} {place}: services do not see {hidden}; {advice}")
        for part in (place, *place.parents):
            needed = stat.S_IXOTH if part.is_dir() else stat.S_IROTH
            if part.exists() and not os.stat(part).st_mode & needed:
                raise ConfigError(f"{option} {place}: other users may not enter or read {part}")
