"""The life of the daemon: build, start, ready, serve, drain, stop."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from omniserve.checkpoint import inspect_checkpoint
from omniserve.config import Config
from omniserve.config_piggyback import describe_piggybacking
from omniserve.config_values import is_loopback, split_address
from omniserve.engine_client import EngineClient, EngineState
from omniserve.engine_process_handle import remove_stale_directories
from omniserve.engine_supervision import EngineSupervision
from omniserve.errors import CheckpointError, ConfigError
from omniserve.logs import LogSettings, get_logger, log_event
from omniserve.tier_table import TierTable

if TYPE_CHECKING:
    from omniserve.front import Front

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ENGINE_STOP_S = 5.0
"""How long an engine without work may take to exit."""
SERVER_STOP_S = 2.0
"""How long the servers may take to hand over what is already answered."""

_logger = get_logger(__name__)


async def serve(
    config: Config,
    config_path: Path,
    announce: Callable[[str], None],
    log_settings: LogSettings,
) -> None:
    """Runs the daemon until a stop signal; `announce` gets the one line that says it is ready.

    SIGHUP reads `config_path`, which is where `config` comes from, again and takes over its tiers.
    Raises ConfigError or CheckpointError where the daemon cannot start, and whatever else ends it.
    A second signal ends the process at once, with the status 128 + signal number.
    """
    _raise_descriptor_limit()
    remove_stale_directories()
    for model in config.models:
        _check_checkpoint(model.name, Path(model.path))
    for key, address in (("listen.grpc", config.listen.grpc), ("listen.http", config.listen.http)):
        _check_free(key, address)
        if not is_loopback(address):
            log_event(_logger, "open_to_the_network", level=logging.WARNING, address=address)
    log_event(_logger, "piggybacking", models=describe_piggybacking(config.piggybacking()))
    supervision = supervision_of(config, log_settings)
    await Daemon(config, config_path, announce, supervision).run()


def _raise_descriptor_limit() -> None:
    """Connections need descriptors; the usual soft limit is for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def supervision_of(config: Config, log_settings: LogSettings) -> EngineSupervision:
    """How the engine process is to be run."""
    threads = config.device.threads
    thread_environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return EngineSupervision(
        heartbeat_s=config.daemon.engine_heartbeat_s,
        load_s=config.daemon.engine_load_s,
        environment=log_settings.environment() | thread_environment,
    )


class Daemon:
    """Owns the engine client and the servers, and decides when they start and stop."""

    def __init__(
        self,
        config: Config,
        config_path: Path,
        announce: Callable[[str], None],
        supervision: EngineSupervision,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._announce = announce
        tiers = TierTable(config.tiers, config.models)
        self._engine = EngineClient(config.engine_settings(), supervision, tiers.all_settings)
        self._front: Front | None = None
        self._stop_requested = asyncio.Event()
        self._reload_requested = asyncio.Event()

    async def run(self) -> None:
        with self._signals():
            life = asyncio.create_task(self._start_and_watch(), name="daemon-life")
            stop = asyncio.create_task(self._stop_requested.wait(), name="daemon-stop-signal")
            try:
                await asyncio.wait((life, stop), return_when=asyncio.FIRST_COMPLETED)
                if life.done():
                    life.result()
                life.cancel()
                await self._drain()
            finally:
                for task in (life, stop):
                    task.cancel()
                await asyncio.gather(life, stop, return_exceptions=True)
                await self._stop()

    async def _start_and_watch(self) -> None:
        """Starts everything; returns never, and raises when a part that must live has died."""
        # The engine loads in a process of its own while the front imports its servers.
        engine = asyncio.create_task(self._engine.start(), name="engine-start")
        try:
            front_class = await asyncio.to_thread(_import_front)
            self._front = front_class(self._config, self._config_path, self._engine)
            await self._front.start()
            await engine
        finally:
            engine.cancel()
            await asyncio.gather(engine, return_exceptions=True)
        self._engine.on_state_change(self._follow_engine)
        self._follow_engine(self._engine.state)
        self._say_ready(self._front)
        raise await self._first_failure(self._front)

    async def _first_failure(self, front: "Front") -> BaseException:
        watches = [
            asyncio.create_task(self._engine.failure(), name="watch-engine-supervision"),
            asyncio.create_task(front.failure(), name="watch-servers"),
            asyncio.create_task(self._reload_on_request(front), name="reload-on-signal"),
        ]
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for watch in watches:
                watch.cancel()

    async def _reload_on_request(self, front: "Front") -> NoReturn:
        while True:
            await self._reload_requested.wait()
            # Before the file is read: a signal that comes from now on is for a later file.
            self._reload_requested.clear()
            await front.reload_tiers()

    def _follow_engine(self, state: EngineState) -> None:
        if self._front is not None:
            self._front.set_serving(state == "ready" and not self._stop_requested.is_set())

    def _say_ready(self, front: "Front") -> None:
        grpc, http = front.grpc_address, front.http_address
        models = ", ".join(model.name for model in self._config.models)
        log_event(_logger, "ready", grpc=grpc, http=http, models=models, pid=os.getpid())
        self._announce(f"omniserve ready: grpc {grpc}, http http://{http}, models {models}")

    async def _drain(self) -> None:
        """Refuses new requests and waits for the running ones, up to the grace period."""
        grace_s = self._config.daemon.shutdown_grace_s
        num_running = self._engine.num_in_flight
        hint = "a second signal ends at once"
        log_event(_logger, "draining", num_running=num_running, grace_s=grace_s, hint=hint)
        if self._front is not None:
            self._front.refuse_new_requests()
        try:
            async with asyncio.timeout(grace_s):
                await self._engine.wait_idle()
        except TimeoutError:
            num_cut = self._engine.num_in_flight
            log_event(_logger, "grace_period_over", level=logging.WARNING, num_cut=num_cut)

    async def _stop(self) -> None:
        # The engine first: its end ends every stream with an error that the servers can still send.
        await self._engine.stop(ENGINE_STOP_S)
        if self._front is not None:
            await self._front.stop(SERVER_STOP_S)
        log_event(_logger, "stopped")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for signum in STOP_SIGNALS:
            loop.add_signal_handler(signum, self._on_signal, signum)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        try:
            yield
        finally:
            for signum in (*STOP_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(signum)

    def _on_reload_signal(self) -> None:
        log_event(_logger, "signal", signal=signal.SIGHUP.name)
        self._reload_requested.set()

    def _on_signal(self, signum: signal.Signals) -> None:
        log_event(_logger, "signal", signal=signum.name)
        if not self._stop_requested.is_set():
            self._stop_requested.set()
            return
        self._engine.kill()
        log_event(_logger, "forced_exit", level=logging.WARNING, status=128 + signum)
        logging.shutdown()
        os._exit(128 + signum)


def _import_front() -> "type[Front]":
    from omniserve.front import Front

    return Front


def _check_checkpoint(model: str, path: Path) -> None:
    """Finds what is wrong with a checkpoint before a process is started for it."""
    try:
        inspect_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"model {model!r}: {error}") from None


def _check_free(key: str, address: str) -> None:
    """Finds an address in use before anything is started; the servers bind for themselves later."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
    except OSError as error:
        raise ConfigError(f"{key}: cannot listen on {address}: {error.strerror}") from None
