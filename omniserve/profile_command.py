"""The subcommand `omniserve profile`."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import number, whole_number

if TYPE_CHECKING:
    from rich.console import Console

    from omniserve.profiling.profile import Profile
    from omniserve.profiling.profiler import Profiler

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_PAGE = Path("out/profile.html")
_EFFORTS = ("", "brief", "quick", "thorough")


def add_profile_command(subparsers: "Subparsers") -> None:
    """Register `profile`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "profile",
        help="measure what steps of a model take",
        description="Measures what steps of a configured model take on this machine, keeps it for "
        "daemons that start, and prints it, with how well it tells steps that it was not fitted "
        "to. Takes less than two minutes for a small model on a quiet machine. A daemon does the "
        "same briefly at its first start.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path("examples/demo.yaml"),
        help="the daemon's configuration (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="NAME", help="which model (default: the first one)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the profile here, for the simulator"
    )
    parser.add_argument(
        "--show",
        nargs="?",
        type=Path,
        const=_DEFAULT_PAGE,
        metavar="FILE",
        help=f"also write a page with charts (default: {_DEFAULT_PAGE})",
    )
    parser.add_argument("--quick", action="store_true", help="fewer kinds of steps, in a minute")
    parser.add_argument(
        "--force", action="store_true", help="measure although this was measured before"
    )
    parser.add_argument(
        "--patience-s",
        type=number("seconds", 0, 3600),
        metavar="S",
        default=0.1,
        help="longest wait, before each measurement, for other processes to leave the cores alone "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 1 << 31),
        metavar="N",
        default=0,
        help="of the prompts' tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the profile as JSON; all else goes to stderr"
    )
    parser.set_defaults(handler=_profile)


@dataclass(frozen=True, slots=True)
class _Found:
    profile: "Profile"
    path: Path | None
    """Where it is kept, if anywhere."""


def _profile(args: argparse.Namespace) -> int:
    import msgspec

    from omniserve.commands.json_output import print_json, text_aside

    with text_aside(args.json):
        found = _run(args)
    if args.json:
        print_json(msgspec.to_builtins(found.profile))
    return 0


def _run(args: argparse.Namespace) -> _Found:
    """Measures or looks up, prints and writes. Raises OmniServeError."""
    from omniserve.config import load_config, without_step_times
    from omniserve.logs import LogSettings, configure_logging
    from omniserve.phase_display import PhaseDisplay
    from omniserve.profiling.profiler import QUICK, THOROUGH, Profiler, display_listener
    from omniserve.terminal import make_console

    configure_logging(LogSettings("text", "warning", False))
    console = make_console()
    config = without_step_times(load_config(args.config))
    for option, path in (("--out", args.out), ("--show", args.show)):
        _check_writable(option, path)
    with PhaseDisplay(console) as display:
        profiler = Profiler(
            config.engine_settings(),
            args.model or config.models[0].name,
            QUICK if args.quick else THOROUGH,
            seed=args.seed,
            patience_s=args.patience_s,
            listener=display_listener(display),
        )
        found = _find(profiler, console, is_forced=args.force)
    _print(console, found.profile)
    _write(args, console, found)
    return found


def _check_writable(option: str, path: Path | None) -> None:
    """Before minutes are spent on what cannot be written. Raises ConfigError."""
    from omniserve.errors import ConfigError

    if path is None:
        return
    parent = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{option} {path}: cannot be written")


def _find(profiler: "Profiler", console: "Console", *, is_forced: bool) -> _Found:
    """Measured now, unless it was as thoroughly before."""
    from omniserve.profiling.store import default_store

    store = default_store()
    if not is_forced:
        of = profiler.identify()
        kept = store.load(of)
        wanted = _EFFORTS.index(profiler.effort_name)
        if kept is not None and _EFFORTS.index(kept.effort) >= wanted:
            console.print(f"measured on {kept.measured_at}; --force measures anew", soft_wrap=True)
            return _Found(kept, store.path(of))
    profile = profiler.run().profile
    return _Found(profile, store.save(profile))


def _print(console: "Console", profile: "Profile") -> None:
    from omniserve.bench.report.table import draw
    from omniserve.profiling.terms import accuracy_table, facts, host_lines, terms_table

    for name, value in facts(profile).items():
        console.print(f"{name}: {value}", soft_wrap=True, markup=False)
    for shown in (terms_table(profile), accuracy_table(profile)):
        if shown.rows:
            console.print(f"\n{shown.title}", style="bold")
            console.print(draw(shown))
        else:
            text = "not known, as each of these was disturbed"
            console.print(f"\n{shown.title}: {text}", soft_wrap=True, markup=False)
    console.print()
    for line in host_lines(profile):
        console.print(line, soft_wrap=True, markup=False)
    for warning in profile.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)


def _write(args: argparse.Namespace, console: "Console", found: _Found) -> None:
    """What the options ask for. Raises ConfigError."""
    from omniserve.errors import ConfigError
    from omniserve.profiling.page import write_profile_page
    from omniserve.profiling.profile import save_profile

    lines = [f"kept: {found.path}"] if found.path else []
    for option, path, write in (
        ("--out", args.out, save_profile),
        ("--show", args.show, write_profile_page),
    ):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(found.profile, path)
        except OSError as error:
            raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from None
        lines.append(f"{'profile' if write is save_profile else 'page'}: {path}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
