"""One incarnation of the engine process: how it is spawned, spoken to and ended."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import zmq

from omniserve.engine_socket import EngineSocket
from omniserve.installation import environment_with_packages
from omniserve.logs import get_logger, log_event
from omniserve.messages import Shutdown, ToEngine, ToFront, decode_to_front, encode

ENGINE_COMMAND = (sys.executable, "-P", "-m", "omniserve.engine.process")
"""Run with its socket's address as one more argument. -P: no imports from the working directory."""

FRONT_PID_VARIABLE = "OMNISERVE_FRONT_PID"
"""Tells the engine whose death it must not survive."""

ENGINE_DEFAULTS = {
    # How long compute threads spin before they sleep. GNU OpenMP's own 300,000 is no faster, and
    # leaves half the speed or less once another process wants one of the cores.
    "GOMP_SPINCOUNT": "10000",
    # Compiled kernels that oneDNN and torch's layer above it keep, one for each shape. Their own
    # 1024 let the engine grow by hundreds of MiB as batch shapes vary; 64 is as fast.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}

_logger = get_logger(__name__)

_MAX_DIRECTORY_BYTES = 107 - len("/engine.sock")
"""What the kernel's limit on socket paths leaves for the directory."""


class EngineProcessHandle:
    """A running engine process and the socket to it. `close` must be called."""

    def __init__(
        self, process: asyncio.subprocess.Process, socket: EngineSocket, directory: Path
    ) -> None:
        self._process = process
        self._socket = socket
        self._directory = directory

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        context: "zmq.Context[zmq.Socket[bytes]]",
        environment: Mapping[str, str],
    ) -> Self:
        """Starts a process that is to connect to a socket of its own in a private directory.

        Raises OSError or ZMQError where the system does not allow it.
        """
        directory = _make_private_directory()
        address = f"ipc://{directory}/engine.sock"
        socket = context.socket(zmq.PAIR)
        try:
            # The front holds what it has sent and received per request, so no limit is needed here.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(address)
            process = await asyncio.create_subprocess_exec(
                *command,
                address,
                stdin=asyncio.subprocess.DEVNULL,
                # Nothing but the daemon's own announcements may reach its stdout.
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
                env=engine_environment(environment),
                # A Ctrl-C in the terminal is the front's to handle.
                start_new_session=True,
            )
        except BaseException:
            socket.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return cls(process, EngineSocket(socket), directory)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queues a message; messages arrive in order, once the engine has connected."""
        self._socket.send(encode(message))

    async def receive(self) -> list[ToFront]:
        """The next messages, at least one. Raises msgspec.DecodeError on what is none."""
        return [decode_to_front(frame) for frame in await self._socket.receive()]

    async def wait(self) -> str:
        """Waits for the end of the process and says how it ended."""
        status = await self._process.wait()
        if status >= 0:
            return f"the engine process exited with status {status}"
        return f"the engine process was ended by {signal.Signals(-status).name}"

    async def shut_down(self, grace_s: float) -> None:
        """Asks the process to end, and gives it so long for it; `close` ends it by force."""
        self.send(Shutdown())
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            log_event(
                _logger,
                "engine_killed",
                level=logging.WARNING,
                reason=f"no end within {grace_s:g} s of being told to end",
            )

    def kill(self) -> None:
        """Ends the process and whatever it has started, without waiting."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def close(self) -> None:
        """Ends the process if it still runs, reaps it and closes the socket."""
        self.kill()
        try:
            await self._process.wait()
        finally:
            # Also where it is cancelled: the loop must not go on looking at the descriptor.
            self._socket.close()


def remove_stale_directories() -> None:
    """Removes the sockets of daemons that were killed before they could do it themselves."""
    for directory in Path(tempfile.gettempdir()).glob("omniserve-*-*"):
        pid = directory.name.split("-")[1]
        with contextlib.suppress(OSError):
            is_ours = pid.isdigit() and directory.stat().st_uid == os.getuid()
            if is_ours and not Path("/proc", pid).exists():
                shutil.rmtree(directory, ignore_errors=True)


def _make_private_directory() -> Path:
    # A new one each time: cleaners of temporary files may have removed an old one.
    directory = Path(tempfile.mkdtemp(prefix=f"omniserve-{os.getpid()}-"))
    if len(os.fsencode(directory)) > _MAX_DIRECTORY_BYTES:
        directory.rmdir()
        raise OSError(f"{directory} is too long a path for a socket; set TMPDIR to a shorter one")
    return directory


def engine_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the engine: ours, and a way to import this very package."""
    environment = ENGINE_DEFAULTS | dict(os.environ) | dict(extra)
    environment[FRONT_PID_VARIABLE] = str(os.getpid())
    return environment_with_packages(environment)
