"""A daemon as a child process: started on free ports, waited for, ended with the demo."""

import asyncio
import ctypes
import json
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from omniserve.config import Config
from omniserve.config_listen import ListenConfig
from omniserve.demo.options import Addresses
from omniserve.errors import OmniServeError

FREE_PORT = "127.0.0.1:0"
GRACE_S = 5.0
STOP_S = 20.0
NUM_LOG_LINES = 5

_READY = re.compile(r"omniserve ready: grpc (\S+), http http://(\S+), models ")
_PR_SET_PDEATHSIG = 1


class DaemonFailed(OmniServeError):
    """The daemon ended although nobody asked it to."""


class DaemonChild:
    """`omniserve serve` with a configuration of our own making; the context stops it."""

    def __init__(self, config: Config, log_path: Path) -> None:
        """Takes everything from `config` but the addresses."""
        self._config = config
        self.log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self.ready_after_s = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def start(self) -> Addresses:
        """Returns once the daemon is ready; raises DaemonFailed."""
        started_s = time.monotonic()
        # The daemon reads the file once, so it need not stay for longer than the start takes.
        with tempfile.TemporaryDirectory(prefix="omniserve-demo-") as directory:
            config_path = Path(directory) / "omniserve.json"
            config_path.write_text(_derived(self._config), encoding="utf-8")
            self._process = await self._spawn(config_path)
            assert self._process.stdout is not None
            line = (await self._process.stdout.readline()).decode("utf-8", "replace")
        ready = _READY.match(line)
        if ready is None:
            raise await self.death()
        self.ready_after_s = time.monotonic() - started_s
        return Addresses(ready[1], ready[2])

    async def _spawn(self, config_path: Path) -> asyncio.subprocess.Process:
        # Looked up before the fork, after which as little as possible should happen.
        prctl = ctypes.CDLL(None).prctl
        with self.log_path.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "omniserve", "serve", str(config_path)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                # Ctrl-C is ours to handle, and a demo that is killed must leave nothing behind.
                start_new_session=True,
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    async def death(self) -> DaemonFailed:
        """Waits for the end of the process and describes it."""
        assert self._process is not None
        status = await self._process.wait()
        how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        lines = self.log_path.read_text("utf-8", "replace").splitlines()[-NUM_LOG_LINES:]
        said = "".join(f"\n  {line}" for line in lines)
        return DaemonFailed(f"the daemon {how}; the end of its log ({self.log_path}):{said}")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self._stop(self._process)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        finally:
            # Interrupted again, or the daemon hangs. Its engine ends with it.
            if process.returncode is None:
                process.kill()
                await process.wait()


def _derived(config: Config) -> str:
    """The same configuration on free ports and quick to stop, as JSON, which is YAML too."""
    daemon = config.daemon
    grace_s = min(GRACE_S, daemon.shutdown_grace_s)
    changes = {
        "listen": ListenConfig(grpc=FREE_PORT, http=FREE_PORT),
        "daemon": daemon.model_copy(update={"shutdown_grace_s": grace_s}),
    }
    derived = config.model_copy(update=changes).model_dump(mode="json", exclude_none=True)
    return json.dumps(derived, ensure_ascii=False)
