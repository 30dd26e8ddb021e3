"""A unix socket to listen on that nobody but its own user can open."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from omniserve.errors import ConfigError

_ONLY_OWN_USER = 0o077
_SOCKET_MODE = 0o600


def make_way(path: Path) -> None:
    """Removes a socket that a daemon left behind; raises ConfigError where the path is taken."""
    try:
        is_taken = path.exists() and not path.is_socket()
    except OSError as error:
        raise ConfigError(f"listen.admin: cannot listen on {path}: {error.strerror}") from None
    if not path.parent.is_dir():
        raise ConfigError(f"listen.admin: cannot listen on {path}: there is no such directory")
    if is_taken:
        raise ConfigError(f"listen.admin: {path} is there and is no socket")
    if _is_in_use(path):
        raise ConfigError(f"listen.admin: cannot listen on {path}: another process does already")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"listen.admin: cannot replace {path}: {error.strerror}") from None


def _is_in_use(path: Path) -> bool:
    """Also where whoever listens is too busy to take one more connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


@contextlib.contextmanager
def closed_to_others(path: Path) -> Iterator[None]:
    """Whoever binds `path` inside the block gets a socket for this user alone."""
    # Others must not get in before the mode is set. Directories made meanwhile stay usable.
    before = os.umask(_ONLY_OWN_USER)
    try:
        yield
    finally:
        os.umask(before)
    path.chmod(_SOCKET_MODE)


class SocketFile:
    """The file of a socket that this process listens on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Leaves alone what another daemon has put in its place."""
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
