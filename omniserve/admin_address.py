"""Where a daemon's Admin service is: as the daemon chooses it, and as commands find it."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from omniserve.config_listen import MAX_SOCKET_PATH_BYTES, UNIX
from omniserve.config_values import is_loopback, split_address
from omniserve.errors import ConfigError, EngineUnavailable

AUTO = "auto"
"""The value of `listen.admin` that leaves the choice to the daemon."""
VARIABLE = "OMNISERVE_ADMIN"
"""Names the admin address where a command is not told one."""
SERVICE_SOCKET = Path("/run/omniserve/admin.sock")
"""Of the daemon that runs as a service of the machine."""
_SYSTEMD_VARIABLE = "RUNTIME_DIRECTORY"
_USER_VARIABLE = "XDG_RUNTIME_DIR"
_SHARED_DIRECTORY = Path("/tmp")
_PROBE_S = 1.0


def default_admin_path(grpc_port: int) -> Path:
    """The socket of a daemon that is told `listen.admin: auto`, by the gRPC port that it has.

    Creates nothing; a directory called `omniserve-UID` is for the daemon to make, for itself alone.
    """
    of_service = os.environ.get(_SYSTEMD_VARIABLE, "").split(":")[0]
    if of_service:
        return Path(of_service) / SERVICE_SOCKET.name
    return next(_runtime_directories()) / _socket_name(grpc_port)


def listening_address(setting: str, grpc_port: int) -> str:
    """What a daemon's `listen.admin` means once its gRPC port is known.

    Makes the directory of the default; raises ConfigError where that is not this user's alone.
    """
    if setting != AUTO:
        return setting
    path = default_admin_path(grpc_port)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700)
    if not is_private(path.parent):
        problem = "is no directory that this user alone can write to"
        raise ConfigError(f"listen.admin: {path.parent} {problem}; give unix:/path or host:port")
    return f"{UNIX}{path}"


def find_admin_address(given: str | None) -> str:
    """A gRPC target for a command: what it was given, what $OMNISERVE_ADMIN names, or the only
    daemon that answers where daemons listen by default.

    Raises ConfigError where that is no address or several daemons answer, EngineUnavailable where
    none does.
    """
    if given is not None:
        return _target_of(given, "--admin")
    named = os.environ.get(VARIABLE)
    if named:
        return _target_of(named, f"${VARIABLE}")
    if answers(SERVICE_SOCKET):
        return unix_target(SERVICE_SOCKET)
    places = [directory for directory in _runtime_directories() if is_private(directory)]
    found = [path for place in places for path in sorted(place.glob("*.sock")) if answers(path)]
    if len(found) == 1:
        return unix_target(found[0])
    advice = f"give --admin unix:/path or --admin host:port, or set ${VARIABLE}"
    if found:
        listed = ", ".join(f"{UNIX}{path}" for path in found)
        raise ConfigError(f"several daemons answer: {listed}; {advice}")
    looked = ", ".join(str(place) for place in (SERVICE_SOCKET, *_runtime_directories()))
    raise EngineUnavailable(f"no daemon of this user answers at {looked}; {advice}")


def admin_target_of(grpc_address: str) -> str | None:
    """A gRPC target for whoever was told the `host:port` of a daemon's gRPC server and no more;
    None where that is not on this machine.

    $OMNISERVE_ADMIN counts before all else. The daemon has to listen where daemons do by default;
    whether one is there is not asked. Raises ConfigError.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _target_of(named, f"${VARIABLE}")
    try:
        _, port = split_address(grpc_address)
    except ValueError as error:
        raise ConfigError(f"{grpc_address}: {error}; give host:port") from None
    if not is_loopback(grpc_address):
        return None
    places = [directory / _socket_name(port) for directory in _runtime_directories()]
    there = [path for path in places if is_private(path.parent) and path.exists()]
    # Not Path.exists: that raises where the service's directory is closed to this user.
    if not there and os.path.exists(SERVICE_SOCKET):
        there = [SERVICE_SOCKET]
    return unix_target((there or places)[0])


def unix_target(path: Path) -> str:
    """A socket's path as gRPC takes it, for servers and for clients."""
    return f"{UNIX}{quote(str(path))}"


def is_private(directory: Path) -> bool:
    """Whether it is a directory of this user's that nobody else can put anything into."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return is_ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def answers(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _runtime_directories() -> Iterator[Path]:
    """Where daemons of this user have their sockets, the first choice first."""
    name = f"omniserve-{os.geteuid()}"
    of_user = Path(os.environ.get(_USER_VARIABLE) or "/nowhere") / name
    longest = of_user / _socket_name(65535)
    fits = of_user.is_absolute() and len(os.fsencode(longest)) <= MAX_SOCKET_PATH_BYTES
    if fits and is_private(of_user.parent):
        yield of_user
    yield _SHARED_DIRECTORY / name


def _socket_name(grpc_port: int) -> str:
    return f"admin-{grpc_port}.sock"


def _target_of(address: str, source: str) -> str:
    if address.startswith(f"{UNIX}/"):
        path = address.removeprefix(UNIX)
        if path.isprintable() and len(path.encode()) <= MAX_SOCKET_PATH_BYTES:
            return unix_target(Path(path))
    else:
        try:
            split_address(address)
        except ValueError:
            pass
        else:
            return address
    raise ConfigError(f"{source} {ascii(address[:128])}: must be unix:/path or host:port")
