"""One run from the command line: a server, a display, files, a table."""

import asyncio
import datetime
import platform
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omniserve import __version__
from omniserve.bench.load.addresses import Addresses
from omniserve.bench.load.display import Display
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.run import LoadRun
from omniserve.bench.load.stream_arguments import with_objectives
from omniserve.bench.load.streams import Stream
from omniserve.bench.load.target import Target
from omniserve.bench.report.files import PAGE_FILE, remove_report, write_report
from omniserve.bench.report.table import render
from omniserve.bench.run_files import save_run
from omniserve.bench.run_record import RunRecord
from omniserve.errors import ConfigError
from omniserve.machine import this_machine
from omniserve.terminal import make_console


class Session:
    """`run` does everything once."""

    def __init__(
        self,
        addresses: Addresses,
        streams: Sequence[Stream],
        options: LoadOptions,
        directory: Path,
        *,
        is_live: bool,
    ) -> None:
        """Raises ConfigError where the directory cannot be made."""
        self._addresses = addresses
        self._streams = streams
        self._options = options
        self._directory = directory
        self._console = make_console()
        self._is_live = is_live and self._console.is_terminal
        _make_directory(directory)
        _allow_many_connections()

    async def run(self) -> bool:
        """Whether no request failed. A run that is interrupted is written too, then
        CancelledError goes on."""
        target = self._addresses.open()
        try:
            with _stopped_by_sigterm():
                return await self._measure(target)
        finally:
            await target.close()

    async def _measure(self, target: Target) -> bool:
        info = await target.describe()
        streams = with_objectives(self._streams, info)
        options = self._options
        self._console.print(
            f"{info.text}: {options.warm_up_s:g} s of warm-up, {options.duration_s:g} s measured; "
            f"streams {', '.join(stream.info.name for stream in streams)}",
            soft_wrap=not self._console.is_terminal,
        )
        for name in _without_objectives(streams):
            self._console.print(
                f"note: stream {name} has no objectives: give --grpc as well, or ttft_ms and "
                "tpot_ms, to see what share of its requests is in time",
                soft_wrap=True,
            )
        with Display(self._console, options, is_live=self._is_live) as display:
            run = LoadRun(target, streams, options, display.show)
            try:
                await run.run()
            except asyncio.CancelledError:
                if run.has_begun:
                    self._write(run.record())
                raise
        return self._write(run.record())

    def _write(self, record: RunRecord) -> bool:
        record.facts |= _facts()
        # What stands there is of an earlier run, even where this one gets no report.
        remove_report(self._directory)
        save_run(record, self._directory)
        self._console.print()
        if record.duration_s <= 0:
            self._console.print("the run ended while it warmed up: nothing to report")
            return False
        self._console.print(render(write_report(record, self._directory)))
        page = self._directory / PAGE_FILE
        self._console.print(f"\nreport: {page}", soft_wrap=True)
        has_failed = any(request.outcome == "failed" for request in record.requests)
        is_silent = all(request.outcome == "cut_off" for request in record.requests) and not any(
            request.token_times_s for request in record.requests
        )
        if is_silent and record.requests:
            self._console.print("the server answered nobody")
        return not has_failed and not (is_silent and record.requests)


def _without_objectives(streams: Sequence[Stream]) -> list[str]:
    """Latency-sensitive streams of which nobody says what they are held to."""
    infos = [stream.info for stream in streams if stream.info.service_class == "latency_sensitive"]
    return [info.name for info in infos if info.ttft_ms is None and info.tpot_ms is None]


def _facts() -> dict[str, str]:
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(["omniserve", *sys.argv[1:]]),
        "generator": f"OmniServe {__version__}, Python {platform.python_version()}",
        "machine": f"{platform.machine()}, {this_machine().num_cores} cores for the generator",
    }


def _allow_many_connections() -> None:
    """A server that falls behind has a connection open for every request that it owes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made: {error.strerror}") from None


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that what was measured is written."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
