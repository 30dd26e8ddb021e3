"""Keeps an engine process alive: when one ends another one follows, later each time."""

import asyncio
import logging
from typing import Protocol

import msgspec
import zmq

from omniserve.backoff import Backoff
from omniserve.engine_process_handle import EngineProcessHandle
from omniserve.engine_supervision import EngineSupervision
from omniserve.engine_watch import EngineWatch
from omniserve.errors import CheckpointError, EngineError
from omniserve.logs import get_logger, log_event
from omniserve.messages import EngineFailed, ToFront

_logger = get_logger(__name__)


class EngineUser(Protocol):
    """Who speaks with the processes that are kept."""

    @property
    def ready(self) -> bool:
        """Whether the process has said that it serves."""
        ...

    @property
    def was_ever_ready(self) -> bool: ...

    @property
    def healthy_s(self) -> float:
        """For how long the process has been ready; 0 of one that is not."""
        ...

    def greet(self, process: EngineProcessHandle) -> None:
        """It was just started, and is to be told what it serves."""
        ...

    async def take(self, messages: list[ToFront]) -> None:
        """What it said at one time; none of it is that it failed."""
        ...

    def lost(self) -> None:
        """The process is nobody's any more."""
        ...


class EngineKeeper:
    """Of one process at a time."""

    def __init__(self, supervision: EngineSupervision, user: EngineUser) -> None:
        self.process: EngineProcessHandle | None = None
        """The one that runs; None before the first and between two."""
        self.num_restarts = 0
        self._supervision = supervision
        self._user = user
        self._watch = EngineWatch(supervision, lambda: user.ready)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def open(self) -> None:
        """Before `run`; `close` is owed."""
        self._context = zmq.Context()

    async def run(self) -> CheckpointError | EngineError:
        """Until one has ended and none was ever ready: what is wrong then will most likely be
        wrong again. Returns why."""
        backoff = Backoff()
        while True:
            reason = await self._run_one_process()
            healthy_s = self._user.healthy_s
            process, self.process = self.process, None
            try:
                self._user.lost()
            finally:
                if process is not None:
                    await process.close()
            if not self._user.was_ever_ready:
                return reason
            delay_s = backoff.next_delay_s(healthy_s)
            log_event(
                _logger,
                "engine_lost",
                level=logging.ERROR,
                reason=str(reason),
                restart_in_s=delay_s,
                num_restarts=self.num_restarts,
            )
            await asyncio.sleep(delay_s)
            self.num_restarts += 1

    async def close(self, grace_s: float | None) -> None:
        """Ends the process, once `run` is cancelled: kindly within `grace_s`, or by force."""
        if self.process is not None:
            if grace_s is not None:
                await self.process.shut_down(grace_s)
            await self.process.close()
            self.process = None
        if self._context is not None:
            self._context.destroy(linger=0)

    def kill(self) -> None:
        """Ends the process at once, without waiting; for a front that is about to exit."""
        if self.process is not None:
            self.process.kill()

    async def _run_one_process(self) -> CheckpointError | EngineError:
        """Spawns a process and serves it until it ends or has to, and says why."""
        assert self._context is not None
        try:
            process = self.process = await EngineProcessHandle.spawn(
                self._supervision.command, self._context, self._supervision.environment
            )
        except (OSError, zmq.ZMQError) as error:
            return EngineError(f"cannot start the engine process: {error}")
        log_event(_logger, "engine_spawned", pid=process.pid, num_restarts=self.num_restarts)
        self._user.greet(process)
        duties = {
            asyncio.create_task(self._receive(process), name="engine-receiver"),
            asyncio.create_task(self._watch.run(), name="engine-watchdog"),
            asyncio.create_task(self._watch.await_exit(process), name="engine-exit"),
        }
        try:
            done, _ = await asyncio.wait(duties, return_when="FIRST_COMPLETED")
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
        return done.pop().result()

    async def _receive(self, process: EngineProcessHandle) -> CheckpointError | EngineError:
        while True:
            try:
                messages = await process.receive()
            except msgspec.MsgspecError as error:
                return EngineError(f"the engine process sent an unknown message: {error}")
            self._watch.heard()
            failed = [each for each in messages if isinstance(each, EngineFailed)]
            if failed:
                return CheckpointError(failed[0].message)
            await self._user.take(messages)
