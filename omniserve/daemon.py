"""The life of the daemon: build, start, ready, serve, drain, stop."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from omniserve.access.tenant_table import shares_of
from omniserve.adapter_checkpoint import inspect_files
from omniserve.config import Config, ModelConfig
from omniserve.config_piggyback import describe_piggybacking
from omniserve.engine_client import EngineClient, EngineState
from omniserve.engine_process_handle import remove_stale_directories
from omniserve.engine_supervision import EngineSupervision
from omniserve.errors import CheckpointError
from omniserve.listening import check_free, listening_warnings
from omniserve.logs import LogSettings, get_logger, log_event
from omniserve.systemd.link import SystemdLink
from omniserve.tier_table import TierTable
from omniserve.tls import Tls

if TYPE_CHECKING:
    from omniserve.front import Front

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ENGINE_STOP_S = 5.0
"""How long an engine without work may take to exit."""
SERVER_STOP_S = 2.0
"""How long the servers may take to hand over what is already answered."""
SPARE_S = 10.0
"""On top of every limit of ours, before whoever runs the daemon may lose patience."""

_logger = get_logger(__name__)


async def serve(
    config: Config,
    config_path: Path,
    announce: Callable[[str], None],
    log_settings: LogSettings,
) -> None:
    """Runs the daemon until a stop signal; `announce` gets the one line that says it is ready.

    SIGHUP reads `config_path`, which is where `config` comes from, again and takes over its tiers,
    tenants and models; the files of certificates are read again too.
    Raises ConfigError or CheckpointError where the daemon cannot start, and whatever else ends it.
    A second signal ends the process at once, with the status 128 + signal number.
    """
    _raise_descriptor_limit()
    remove_stale_directories()
    for model in config.models:
        _check_files(model)
    check_free(config)
    tls = Tls.of(config.tls, config_path)
    _tell_who_may_connect(config)
    piggybacking = describe_piggybacking(config.piggybacking(), config.host.kv_bytes)
    log_event(_logger, "piggybacking", models=piggybacking)
    supervision = supervision_of(config, log_settings)
    await Daemon(config, config_path, announce, supervision, tls).run()


def _tell_who_may_connect(config: Config) -> None:
    if not config.tenants:
        hint = "give tenants to listen elsewhere"
        log_event(_logger, "this_machine_only", hint=hint)
    for warning in listening_warnings(config):
        log_event(_logger, "not_encrypted", level=logging.WARNING, reason=warning)


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
        tls: Tls | None = None,
    ) -> None:
        self._config = config
        self._tls = tls
        self._config_path = config_path
        self._announce = announce
        tiers = TierTable(config.tiers, config.models)
        self._engine = EngineClient(
            config.engine_settings(), supervision, tiers.all_settings, shares_of(config.tenants)
        )
        self._front: Front | None = None
        self._systemd = SystemdLink(self._engine, self._reload_error)
        self._stop_requested = asyncio.Event()
        self._reload_requested = asyncio.Event()

    async def run(self) -> None:
        with self._signals():
            life = asyncio.create_task(self._start_and_watch(), name="daemon-life")
            stop = asyncio.create_task(self._stop_requested.wait(), name="daemon-stop-signal")
            telling = asyncio.create_task(self._systemd.run(), name="daemon-tell-systemd")
            try:
                tasks = (life, stop, telling)
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in (life, telling):
                    if task.done():
                        task.result()
                life.cancel()
                await self._drain()
            finally:
                for each in (life, stop, telling):
                    each.cancel()
                await asyncio.gather(life, stop, telling, return_exceptions=True)
                await self._stop()

    async def _start_and_watch(self) -> None:
        """Starts everything; returns never, and raises when a part that must live has died."""
        self._systemd.starting(self._config.daemon.engine_load_s + SPARE_S)
        # The engine loads in a process of its own while the front imports its servers.
        engine = asyncio.create_task(self._engine.start(), name="engine-start")
        try:
            front_class = await asyncio.to_thread(_import_front)
            self._front = front_class(self._config, self._config_path, self._engine, self._tls)
            await self._front.start()
            await engine
        finally:
            engine.cancel()
            await asyncio.gather(engine, return_exceptions=True)
        self._engine.on_state_change(self._follow_engine)
        self._follow_engine(self._engine.state)
        _keep_what_is_loaded()
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
            await front.reload()

    def _follow_engine(self, state: EngineState) -> None:
        if self._front is not None:
            self._front.set_serving(state == "ready" and not self._stop_requested.is_set())

    def _reload_error(self) -> str:
        return "" if self._front is None else self._front.reload_error

    def _say_ready(self, front: "Front") -> None:
        grpc, http = front.grpc_address, front.http_address
        models = ", ".join(model.name for model in self._config.models)
        log_event(
            _logger,
            "ready",
            grpc=grpc,
            http=http,
            admin=front.admin_address,
            status=front.status_address,
            models=models,
            pid=os.getpid(),
        )
        scheme = "http" if self._tls is None else "https"
        self._announce(f"omniserve ready: grpc {grpc}, http {scheme}://{http}, models {models}")
        self._systemd.ready()

    async def _drain(self) -> None:
        """Refuses new requests and waits for the running ones, up to the grace period."""
        grace_s = self._config.daemon.shutdown_grace_s
        self._systemd.stopping(grace_s + ENGINE_STOP_S + SERVER_STOP_S + SPARE_S)
        num_running = self._engine.num_in_flight
        hint = "a second signal ends at once"
        log_event(_logger, "draining", num_running=num_running, grace_s=grace_s, hint=hint)
        if self._front is not None:
            self._front.refuse_new_requests()
        try:
            async with asyncio.timeout(grace_s):
                if self._front is not None:
                    await self._front.wait_models()
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


def _keep_what_is_loaded() -> None:
    """Modules and tables stay until the end: a full garbage collection that goes through them holds
    up every stream for some 40 ms."""
    gc.collect()
    gc.freeze()


def _import_front() -> "type[Front]":
    # Lines of its own would tell of every client that fails a handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from omniserve.front import Front

    return Front


def _check_files(model: ModelConfig) -> None:
    """Finds what is wrong with a model's files before a process is started for it."""
    try:
        inspect_files(model.path, model.base)
    except CheckpointError as error:
        raise CheckpointError(f"model {model.name!r}: {error}") from None
