"""Puts unit files where systemd looks for them, and takes them away; other people's are left."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omniserve.atomic_file import write_text
from omniserve.errors import ConfigError, OmniServeError
from omniserve.regular_file import read_regular_file
from omniserve.systemd.unit_files import UNIT, UNIT_FILES, is_ours

MAX_UNIT_BYTES = 1 << 20
ENABLED_LINK = f"multi-user.target.wants/{UNIT}"
"""Made by `systemctl enable`, which needs the unit to remove it again."""
_FOR_ALL_TO_READ = 0o644

Action = Literal["write", "replace", "keep", "remove"]


@dataclass(frozen=True, slots=True)
class FileChange:
    path: Path
    action: Action
    text: str = ""


def plan_changes(
    directory: Path, wanted: Mapping[str, str], *, is_forced: bool
) -> list[FileChange]:
    """What makes the directory hold the wanted ones of UNIT_FILES, and none of the others.

    Raises ConfigError for a file that is not as we wrote it, unless that is forced.
    """
    changes = []
    for name in UNIT_FILES:
        path, text = directory / name, wanted.get(name)
        found = _read(path)
        if found is None and text is None:
            continue
        if found not in (None, text) and not is_ours(found or "") and not is_forced:
            raise ConfigError(
                f"{path} was changed or written by somebody else; move what it says into a drop-in "
                "(systemctl edit) or give --force"
            )
        changes.append(_change(path, found, text))
    if UNIT not in wanted and (directory / ENABLED_LINK).is_symlink():
        changes.append(FileChange(directory / ENABLED_LINK, "remove"))
    return changes


def apply_changes(changes: list[FileChange]) -> None:
    """Each file at once or not at all. Raises OmniServeError."""
    for change in changes:
        try:
            _apply(change)
        except OSError as error:
            problem = f"cannot {change.action} {change.path}: {error.strerror}"
            raise OmniServeError(problem + _advice(error)) from None


def _apply(change: FileChange) -> None:
    if change.action == "remove":
        change.path.unlink()
        # Ours alone was in it, or it stays.
        if change.path.parent.name.endswith((".d", ".wants")):
            with contextlib.suppress(OSError):
                change.path.parent.rmdir()
    elif change.action != "keep":
        change.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_text(change.path, change.text)
        # Whatever the umask of who installs: units are no secrets.
        os.chmod(change.path, _FOR_ALL_TO_READ)


def _change(path: Path, found: str | None, text: str | None) -> FileChange:
    if text is None:
        return FileChange(path, "remove")
    if found is None:
        return FileChange(path, "write", text)
    return FileChange(path, "keep" if found == text else "replace", text)


def _read(path: Path) -> str | None:
    """None where there is none; what is no text file, such as a mask, is somebody else's."""
    try:
        return read_regular_file(path, MAX_UNIT_BYTES).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return "" if path.is_symlink() else None
    except PermissionError as error:
        raise OmniServeError(f"cannot read {path}: {error.strerror}{_advice(error)}") from None
    except OSError:
        return ""


def _advice(error: OSError) -> str:
    return "; run it as root" if isinstance(error, PermissionError) else ""
