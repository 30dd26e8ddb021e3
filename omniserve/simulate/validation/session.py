"""The real runs, the simulated one, and their figures side by side."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from omniserve.atomic_file import write_text
from omniserve.bench.load.display import Display
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import Stream
from omniserve.bench.report.files import write_report
from omniserve.bench.report.summary import summarise
from omniserve.bench.run_files import save_run
from omniserve.config import Config
from omniserve.others_meter import QUIET_CORES, await_quiet
from omniserve.profiling.profile import Profile
from omniserve.simulate.real_daemon import RealRun, real_daemon
from omniserve.simulate.resolve import profile_by_model, resolve_streams, tiers_by_name
from omniserve.simulate.run import simulate
from omniserve.simulate.validation.validate import Comparison, compare
from omniserve.terminal import make_console

COMPARISON_FILE = "validation.json"
_VERDICTS = {True: "yes", False: "NO", None: "-"}


@dataclass(frozen=True, slots=True)
class Validation:
    """What is run twice, and where it is written."""

    config: Config
    profiles: Sequence[Profile]
    streams: Sequence[Stream]
    options: LoadOptions
    num_rounds: int
    """Of the real run."""
    patience_s: float
    """Longest wait for others to leave the cores alone, before each of them."""
    out: Path


def run_validation(validation: Validation) -> list[Comparison]:
    """Runs, simulates, writes and prints. Raises ConfigError, DaemonFailed or OSError."""
    console = make_console()
    streams = resolve_streams(validation.streams, validation.config)
    validation.out.mkdir(parents=True, exist_ok=True)
    reals = asyncio.run(_run_real(validation, streams, console))
    simulated = simulate(
        streams,
        validation.config.engine_settings(),
        profile_by_model(validation.profiles, validation.config),
        validation.options,
        tiers=tiers_by_name(validation.config),
    )
    for name, record in (
        *((f"real-{place}", real.record) for place, real in enumerate(reals, start=1)),
        ("simulated", simulated),
    ):
        directory = validation.out / name
        save_run(record, directory)
        write_report(record, directory)
    comparisons = compare([summarise(real.record) for real in reals], summarise(simulated))
    _write(validation.out / COMPARISON_FILE, comparisons, reals)
    console.print(_table(comparisons))
    _warn(reals, console)
    return comparisons


async def _run_real(
    validation: Validation, streams: Sequence[Stream], console: Console
) -> list[RealRun]:
    """Each on a daemon of its own: what differs from start to start belongs to what is real."""
    reals = []
    for place in range(1, validation.num_rounds + 1):
        console.print(f"real run {place} of {validation.num_rounds}")
        async with real_daemon(validation.config) as daemon:
            await asyncio.to_thread(await_quiet, validation.patience_s)
            with Display(console, validation.options, is_live=console.is_terminal) as display:
                reals.append(await daemon.run(streams, validation.options, display.show))
    return reals


def _write(path: Path, comparisons: Sequence[Comparison], reals: Sequence[RealRun]) -> None:
    document = {
        "comparisons": [
            asdict(each)
            | {"real": each.real, "error": each.error, "bar": each.bar, "is_met": each.is_met}
            for each in comparisons
        ],
        "others_cores": [real.others_cores for real in reals],
        "generator_cores": [real.record.generator_cores for real in reals],
    }
    write_text(path, msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n")


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table("stream", "figure", title="Simulated against real", title_justify="left")
    for column in ("real", "from", "to", "simulated", "error", "bar", "met"):
        table.add_column(column, justify="right")
    for each in comparisons:
        table.add_row(
            each.stream,
            each.figure,
            _number(each.real),
            _number(min(each.reals, default=None)),
            _number(max(each.reals, default=None)),
            _number(each.simulated),
            "-" if each.error is None else f"{each.error:+.0%}",
            f"{each.bar:.0%}",
            _VERDICTS[each.is_met],
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _warn(reals: Sequence[RealRun], console: Console) -> None:
    others_cores = max(real.others_cores for real in reals)
    if others_cores > QUIET_CORES:
        console.print(
            f"warning: other processes used {others_cores:.2f} cores during a real run, which the "
            "simulation knows nothing of"
        )
