"""One run of the demo: a model, a daemon, traffic, a report."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from rich.console import Console

from omniserve.atomic_file import write_text
from omniserve.config import Config, ModelConfig, load_config
from omniserve.config_values import split_address
from omniserve.demo.clients import DaemonClients, Served
from omniserve.demo.console import print_next_steps, print_result
from omniserve.demo.daemon_child import DaemonChild
from omniserve.demo.live import show_lines, show_live
from omniserve.demo.next_steps import next_steps
from omniserve.demo.options import DEFAULT_CONFIG, Addresses, DemoOptions
from omniserve.demo.report import render_report
from omniserve.demo.result import DemoResult, make_result
from omniserve.demo.traffic import Traffic
from omniserve.errors import ConfigError
from omniserve.terminal import make_console

ARCH, PRESET = "qwen3", "small"


def run_demo(options: DemoOptions) -> DemoResult:
    """Runs, writes and prints. Raises OmniServeError where the demo cannot run."""
    console = make_console()
    _check_report_path(options.report)
    _check_attach(options.attach)
    config = None if options.attach else load_config(options.config)
    if config is not None:
        _make_missing_model(console, config, options)
    result = asyncio.run(_Session(options, console).run(config))
    listen = options.attach
    if config is not None:
        listen = Addresses(config.listen.grpc, config.listen.http)
    assert listen is not None
    steps = next_steps(options, listen, result.served.model, result.served.interactive.name)
    try:
        write_text(options.report, render_report(result, steps))
    finally:
        print_result(console, result)
    console.print(f"report: {options.report}", soft_wrap=True)
    if result.log_path is not None:
        console.print(f"the daemon's log: {result.log_path}", soft_wrap=True)
    print_next_steps(console, steps)
    return result


class _Session:
    def __init__(self, options: DemoOptions, console: Console) -> None:
        self._options = options
        self._console = console

    async def run(self, config: Config | None) -> DemoResult:
        """Leaves no process behind, however it ends. Uses the given daemon without a config."""
        with _stopped_by_sigterm():
            if config is None:
                assert self._options.attach is not None
                return await self._measure(self._options.attach, None)
            async with self._daemon(config) as (addresses, child):
                return await self._measure(addresses, child)

    @asynccontextmanager
    async def _daemon(self, config: Config) -> AsyncIterator[tuple[Addresses, DaemonChild]]:
        log_path = self._options.report.with_suffix(".log")
        self._say("starting the daemon; the first start also measures what steps take ...")
        async with DaemonChild(config, log_path) as child:
            addresses = await child.start()
            self._say(
                f"ready after {child.ready_after_s:.1f} s: "
                f"grpc {addresses.grpc}, http http://{addresses.http}"
            )
            try:
                yield addresses, child
            finally:
                self._say("stopping the daemon ...")

    async def _measure(self, addresses: Addresses, child: DaemonChild | None) -> DemoResult:
        async with DaemonClients(addresses) as clients:
            served = await clients.describe(self._options.model)
            self._announce(served)
            traffic = Traffic(clients, served, self._options)
            show = show_live if self._is_live else show_lines
            display = asyncio.create_task(show(self._console, served, traffic.record))
            try:
                await _unless_dead(traffic, child)
            finally:
                display.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await display
        return make_result(
            self._options,
            served,
            addresses,
            traffic.record,
            child.ready_after_s if child else None,
            child.log_path if child else None,
        )

    @property
    def _is_live(self) -> bool:
        return self._options.is_live and self._console.is_terminal

    def _announce(self, served: Served) -> None:
        options = self._options
        self._say(
            f"{options.duration_s:g} s of traffic for model {served.model} on {served.device}: "
            f"{options.ls_rate:g} chats per second ({served.interactive.name}, gRPC) beside "
            f"{options.be_concurrency} long completions at a time ({served.batch.name}, HTTP)"
        )

    def _say(self, text: str) -> None:
        # A terminal breaks lines between words; what goes to a file keeps its lines.
        self._console.print(text, soft_wrap=not self._console.is_terminal)


async def _unless_dead(traffic: Traffic, child: DaemonChild | None) -> None:
    """Runs the traffic; raises DaemonFailed as soon as the daemon ends."""
    run = asyncio.create_task(traffic.run(), name="demo-traffic")
    deaths = [asyncio.create_task(child.death(), name="demo-daemon")] if child else []
    try:
        await asyncio.wait([run, *deaths], return_when="FIRST_COMPLETED")
        for death in deaths:
            if death.done():
                raise death.result()
        await run
    finally:
        for task in (run, *deaths):
            task.cancel()
        await asyncio.gather(run, *deaths, return_exceptions=True)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that the daemon is stopped too."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _check_report_path(path: Path) -> None:
    """Finds out before the run whether there is a place for the report."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {path}: cannot make its directory: {error.strerror}") from None
    if path.is_dir():
        raise ConfigError(f"--report {path}: is a directory; name a file")


def _check_attach(addresses: Addresses | None) -> None:
    for address in (addresses.grpc, addresses.http) if addresses else ():
        try:
            split_address(address)
        except ValueError as error:
            raise ConfigError(
                f"--attach {address}: {error}; give host:port, for example 127.0.0.1:8000"
            ) from None


def _make_missing_model(console: Console, config: Config, options: DemoOptions) -> None:
    name = options.model
    model = config.models[0] if name is None else config.model(name)
    if model is None:
        names = ", ".join(each.name for each in config.models)
        raise ConfigError(f"--model {name}: is not in the configuration; it has {names}")
    # Only the demo's own: a path of somebody's configuration may be mistyped.
    if options.config == DEFAULT_CONFIG and not Path(model.path).exists():
        _make_model(console, model)


def _make_model(console: Console, model: ModelConfig) -> None:
    from omniserve.synthetic.create import write_checkpoint

    console.print(
        f"{model.path} does not exist: making a small model with random weights there "
        f"({ARCH}, {PRESET}, {model.dtype}) ...",
        soft_wrap=True,
    )
    with console.status("writing weights") as status:

        def show(written: int, total: int) -> None:
            status.update(f"writing weights: {written >> 20} of {total >> 20} MiB")

        write_checkpoint(model.path, arch=ARCH, preset=PRESET, dtype=model.dtype, progress=show)
