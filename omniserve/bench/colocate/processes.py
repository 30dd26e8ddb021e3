"""Processes that a comparison starts, and that end with it."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from omniserve.bench.colocate.placement import ANYWHERE, Placement
from omniserve.errors import OmniServeError

STOP_S = 15.0
NUM_LOG_LINES = 12

_PR_SET_PDEATHSIG = 1


class ServerFailed(OmniServeError):
    """A server did not start, or ended although nobody asked it to."""


class ServerProcess:
    """A process with all that it starts, in a group of its own. `stop` must be called."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name = name
        self._process = process
        self._log_path = log_path

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        directory: Path,
        placement: Placement = ANYWHERE,
    ) -> "ServerProcess":
        """Its output goes to `log_path`; it runs in `directory`. Raises ServerFailed."""
        # Looked up before the fork, after which as little as possible should happen.
        prctl = ctypes.CDLL(None).prctl

        def before_exec() -> None:
            # Whoever kills us must leave nothing behind.
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            placement.take()

        with log_path.open("wb") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(environment),
                    cwd=directory,
                    # Ctrl-C is ours to handle.
                    start_new_session=True,
                    preexec_fn=before_exec,
                )
            except OSError as error:
                raise ServerFailed(f"{name}: {command[0]}: {error.strerror}") from None
        server = cls(name, process, log_path)
        try:
            await placement.tell_autogroup(process.pid)
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self._log_path.read_text("utf-8", "replace")

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants that live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def check(self) -> None:
        """Raises ServerFailed where it has ended."""
        if self._process.returncode is not None:
            raise self.failure(f"ended with status {self._process.returncode}")

    async def wait(self) -> ServerFailed:
        """Waits for its end and describes it."""
        status = await self._process.wait()
        return self.failure(f"ended with status {status}")

    def failure(self, text: str) -> ServerFailed:
        """An error that quotes the end of the log."""
        said = "".join(f"\n  {line}" for line in self.log.splitlines()[-NUM_LOG_LINES:])
        return ServerFailed(f"{self.name} {text}; the end of its log ({self._log_path}):{said}")

    async def stop(self) -> None:
        """Asks it to end, then kills what is left of it and of what it started."""
        tree = self.tree()
        try:
            if self._process.returncode is None:
                self._process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
        except TimeoutError:
            pass
        finally:
            # Engines and workers live in groups of their own: the whole tree, not the group alone.
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
