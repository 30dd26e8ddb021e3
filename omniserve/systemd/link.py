"""Keeps the service manager informed about the daemon; does nothing where there is none."""

import asyncio
import faulthandler
import logging
import os
from collections.abc import Callable, MutableMapping
from typing import Literal, NoReturn, Protocol

from omniserve.logs import get_logger, log_event
from omniserve.settings import ModelInfo
from omniserve.systemd.notify import NotifySocket
from omniserve.systemd.status_text import serving_text
from omniserve.systemd.step_progress import StepProgress, WatchedEngine

STATUS_EVERY_S = 5.0
LOOKS_PER_WATCHDOG = 8
LEAST_PATIENCE_S = 2.5
"""An idle engine reports every second; to be silent for a moment is no stall."""

_logger = get_logger(__name__)


class ToldEngine(WatchedEngine, Protocol):
    """What the service manager is told of."""

    @property
    def state(self) -> str: ...
    @property
    def models(self) -> dict[str, ModelInfo]: ...


class SystemdLink:
    """Of one daemon. `run` has to run from the daemon's start until it has drained."""

    def __init__(
        self,
        engine: ToldEngine,
        reload_error: Callable[[], str],
        environment: MutableMapping[str, str] = os.environ,
    ) -> None:
        """`reload_error` says why the configuration was refused when it was last read, if it was.

        What the service manager says is taken out of `environment`.
        """
        self._engine = engine
        self._reload_error = reload_error
        self._socket = NotifySocket.taken_from(environment)
        watchdog_s = self._socket.watchdog_s if self._socket else None
        self._look_every_s = STATUS_EVERY_S
        self._progress: StepProgress | None = None
        """None where no watchdog waits to hear."""
        if watchdog_s is not None:
            self._look_every_s = min(STATUS_EVERY_S, watchdog_s / LOOKS_PER_WATCHDOG)
            self._progress = StepProgress(max(LEAST_PATIENCE_S, watchdog_s / 2))
        self._phase: Literal["loading", "serving", "draining"] = "loading"
        self._is_stalled = False
        self._status = ""
        self._untold: dict[str, int] = {}

    def starting(self, within_s: float) -> None:
        """The daemon will be ready after so long, or have given up."""
        if self._socket is not None:
            # The watchdog ends the process by SIGABRT: the log is to say what it was doing.
            faulthandler.enable()
        self._tell(EXTEND_TIMEOUT_USEC=int(within_s * 1e6))

    def ready(self) -> None:
        self._phase = "serving"
        self._tell(READY=1)

    def stopping(self, within_s: float) -> None:
        """The daemon will be gone after so long."""
        self._phase = "draining"
        self._tell(STOPPING=1, EXTEND_TIMEOUT_USEC=int(within_s * 1e6))

    async def run(self) -> NoReturn:
        """Tells what changes and, unless the engine is stalled, that the daemon lives."""
        while True:
            await asyncio.sleep(self._look_every_s)
            if self._progress is None or self._is_without_progress(self._progress):
                self._tell()
            else:
                self._tell(WATCHDOG=1)

    def _is_without_progress(self, progress: StepProgress) -> bool:
        now_s = asyncio.get_running_loop().time()
        was_stalled = self._is_stalled
        self._is_stalled = progress.is_stalled(self._engine, now_s)
        if self._is_stalled and not was_stalled:
            num_requests = self._engine.num_in_flight
            log_event(_logger, "engine_stalled", level=logging.ERROR, num_requests=num_requests)
        return self._is_stalled

    def _tell(self, **variables: int) -> None:
        if self._socket is None:
            return
        status = self._status_text()
        told = self._untold | variables
        if status == self._status and not told:
            return
        if self._socket.send(STATUS=status, **told):
            self._untold, self._status = {}, status
        else:
            # It hears this with what comes next; a sign of life has to be a new one.
            self._untold = {name: told[name] for name in told if name != "WATCHDOG"}

    def _status_text(self) -> str:
        engine = self._engine
        if self._phase == "loading":
            return "loading models"
        if self._phase == "draining":
            return f"draining: {engine.num_in_flight} requests running"
        if not engine.ready:
            return f"the engine is {engine.state}"
        text = serving_text(tuple(engine.models), tuple(engine.stats.values()))
        if self._is_stalled:
            text += "; no step completes"
        return f"{text}; the changed file was refused" if self._reload_error() else text
