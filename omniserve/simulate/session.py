"""From files and texts to a simulated run, its report, and what is printed of it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from omniserve import __version__
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.stream_arguments import streams_of
from omniserve.bench.load.streams import Stream, TraceStream
from omniserve.bench.report.files import PAGE_FILE, write_report
from omniserve.bench.report.table import render
from omniserve.bench.run_files import save_run
from omniserve.bench.run_record import RunRecord
from omniserve.config import load_config
from omniserve.errors import ConfigError
from omniserve.profiling.profile import load_profile
from omniserve.simulate.resolve import (
    models_without_host,
    profile_by_model,
    resolve_streams,
    scaled,
    tiers_by_name,
)
from omniserve.simulate.run import OnProgress, simulate
from omniserve.simulate.shared_layers import layer_keys
from omniserve.terminal import make_console

_LAST_REQUEST_S = 1e-3
"""What arrives at the very end of the measured part is not of it any more."""
_RECIPE_S = 600.0
"""Length of what a recipe makes, and of a run without a trace."""


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """What `omniserve simulate run` was told."""

    config: Path
    profiles: Sequence[Path]
    streams: Sequence[str]
    backlogs: Sequence[str]
    rate: float
    num_engines: int
    shared_layers: Sequence[str]
    """As `omniserve.simulate.shared_layers.layer_keys` takes them."""
    duration_s: float | None
    """None: to the end of the longest trace."""
    warm_up_s: float
    drain_s: float
    seed: int
    out: Path
    title: str
    is_summary_only: bool


def run_session(request: SimulationRequest) -> RunRecord:
    """Simulates, writes and prints.

    Raises:
        ConfigError: a file or a field is not as it has to be; the message names it.
        CheckpointError: a checkpoint that is to be read cannot be.
        OSError: the directory cannot be written.
    """
    console = make_console()
    profiles = [load_profile(path) for path in request.profiles]
    config = load_config(request.config, profiles[0].machine)
    settings = config.engine_settings(profiles[0].machine)
    by_model = profile_by_model(profiles, config)
    keys = layer_keys(request.shared_layers, settings.models, by_model)
    streams = resolve_streams(_streams(request), config)
    _make_directory(request.out)
    for name in models_without_host(settings, by_model):
        console.print(
            f"warning: the profile of {name} knows no host attention: simulated without "
            "piggybacking",
            soft_wrap=True,
        )
    _check_warm_up(streams, request.warm_up_s)
    warnings = [f"profile of {each.model}: {text}" for each in profiles for text in each.warnings]
    for text in warnings:
        console.print(f"warning: {text}", soft_wrap=True)
    options = LoadOptions(
        duration_s=request.duration_s or _measured_s(streams, request.warm_up_s),
        warm_up_s=request.warm_up_s,
        drain_s=request.drain_s,
        seed=request.seed,
        title=request.title,
    )
    started_s = time.monotonic()
    with _progress(console, options.duration_s) as on_progress:
        record = simulate(
            streams,
            settings,
            by_model,
            options,
            request.num_engines,
            tiers_by_name(config),
            on_progress,
            keys,
        )
    elapsed_s = time.monotonic() - started_s
    record.facts |= {"rate": request.rate} | _facts()
    if request.shared_layers:
        record.facts["shared layers"] = " ".join(request.shared_layers)
    if warnings:
        record.facts["warnings"] = "; ".join(warnings)
    _write(request, record, console)
    console.print(
        f"simulated {len(record.requests):,} requests, {options.duration_s:,.0f} s of load, in "
        f"{elapsed_s:.1f} s"
    )
    return record


def _facts() -> dict[str, str]:
    """No date: equal arguments give equal runs."""
    return {
        "command": " ".join(["omniserve", *sys.argv[1:]]),
        "simulator": f"OmniServe {__version__}",
    }


def _streams(request: SimulationRequest) -> list[Stream]:
    if request.duration_s is None:
        total_s = _RECIPE_S
    else:
        total_s = request.warm_up_s + request.duration_s
    streams = streams_of(
        request.streams, request.backlogs, total_s=total_s * request.rate, seed=request.seed
    )
    return scaled(streams, request.rate)


def _longest_s(streams: Sequence[Stream]) -> float:
    """A backlog has no end of its own."""
    lengths = [stream.trace.duration_s for stream in streams if isinstance(stream, TraceStream)]
    return max(lengths, default=_RECIPE_S)


def _measured_s(streams: Sequence[Stream], warm_up_s: float) -> float:
    """To the end of the longest trace, its last request included."""
    return max(1.0, _longest_s(streams) - warm_up_s + _LAST_REQUEST_S)


def _check_warm_up(streams: Sequence[Stream], warm_up_s: float) -> None:
    """Raises ConfigError where nothing of a trace would be measured."""
    for stream in streams:
        if isinstance(stream, TraceStream) and stream.trace.duration_s < warm_up_s:
            raise ConfigError(
                f"stream {stream.info.name}: all {len(stream.trace)} requests of its trace come "
                f"within the warm-up of {warm_up_s:g} s: give a shorter --warm-up-s"
            )


def _make_directory(path: Path) -> None:
    """Before the simulation: its minutes must not be lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made: {error.strerror}") from None


def _write(request: SimulationRequest, record: RunRecord, console: Console) -> None:
    if not request.is_summary_only:
        save_run(record, request.out)
    console.print(render(write_report(record, request.out)))
    console.print(f"\nreport: {request.out / PAGE_FILE}", soft_wrap=True)


@contextmanager
def _progress(console: Console, duration_s: float) -> Iterator[OnProgress]:
    """A bar on a terminal; a pipe gets nothing, for the end tells all."""
    bar = Progress(
        TextColumn("simulating"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("run", total=duration_s)
        yield lambda share: bar.update(task, completed=share * duration_s)
