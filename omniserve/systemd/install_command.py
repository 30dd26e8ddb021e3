"""The subcommand `omniserve install-service`."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniserve.systemd.unit_directory import FileChange

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_CONFIG = "/etc/omniserve/omniserve.yaml"
_UNITS = Path("etc/systemd/system")
_DONE = {"write": "wrote", "replace": "replaced", "keep": "left as it is", "remove": "removed"}


def add_install_service_command(subparsers: "Subparsers") -> None:
    """Register `install-service`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "install-service",
        help="install the systemd unit of this installation",
        description="Writes omniserve.service, which runs this installation under systemd, and "
        "tells what to do next; starts nothing. A unit that was changed by hand is left alone. "
        "Run again, it brings the unit up to date.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=_DEFAULT_CONFIG,
        help="configuration file that the service reads (default: %(default)s)",
    )
    parser.add_argument(
        "--executable",
        metavar="FILE",
        help="the command that the service runs (default: that of this installation)",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        default=Path("/"),
        help="write below this directory, for images and packages (default: %(default)s)",
    )
    parser.add_argument("--gpu", action="store_true", help="let the service use NVIDIA devices")
    parser.add_argument("--cpus", metavar="LIST", help="run on these CPUs only, such as 0-3,8")
    parser.add_argument(
        "--uninstall", action="store_true", help="remove what this command wrote, and nothing else"
    )
    parser.add_argument(
        "--force", action="store_true", help="also replace or remove what others wrote"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the files, change nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=_install_service)


def _install_service(args: argparse.Namespace) -> int:
    """Raises ConfigError for what cannot be installed, and OmniServeError where writing fails."""
    from omniserve.systemd.unit_directory import apply_changes, plan_changes

    wanted = {} if args.uninstall else _wanted_files(args)
    changes = plan_changes(args.root / _UNITS, wanted, is_forced=args.force)
    if not args.dry_run:
        apply_changes(changes)
    if args.json:
        _print_json(changes, _next_steps(args))
    elif args.dry_run:
        _print_files(changes)
    else:
        _print_done(changes, _next_steps(args))
    return 0


def _wanted_files(args: argparse.Namespace) -> dict[str, str]:
    from omniserve.systemd.install_arguments import (
        check_cpus,
        check_path,
        check_visible,
        this_executable,
    )
    from omniserve.systemd.unit_files import UnitSettings, unit_files

    is_here = args.root == Path("/")
    config = check_path("--config", args.config)
    given = this_executable() if args.executable is None else args.executable
    executable = check_path("--executable", given)
    if is_here:
        check_visible("--executable", Path(executable))
        check_visible("--config", Path(config))
        if args.executable is None:
            # What this installation consists of besides its command.
            for part in (Path(sys.executable), Path(__file__)):
                check_visible("--executable", part)
    cpus = args.cpus and check_cpus(args.cpus, os.sched_getaffinity(0) if is_here else None)
    return unit_files(UnitSettings(executable, config, cpus, args.gpu))


def _next_steps(args: argparse.Namespace) -> list[str]:
    if args.uninstall:
        return ["systemctl stop omniserve.service", "systemctl daemon-reload"]
    steps = ["systemctl daemon-reload", "systemctl enable --now omniserve.service"]
    if not (args.root / args.config.lstrip("/")).exists():
        steps.insert(0, f"write {args.config}; `omniserve config check` tells whether it is right")
    return [*steps, "systemctl status omniserve.service"]


def _print_json(changes: "list[FileChange]", steps: list[str]) -> None:
    from omniserve.commands.json_output import print_json

    files = [{"path": str(each.path), "action": each.action, "text": each.text} for each in changes]
    print_json({"files": files, "next": steps})


def _print_files(changes: "list[FileChange]") -> None:
    for change in changes:
        sys.stdout.write(f"# {change.action} {change.path}\n{change.text}\n")


def _print_done(changes: "list[FileChange]", steps: list[str]) -> None:
    for change in changes:
        sys.stdout.write(f"{change.path}: {_DONE[change.action]}\n")
    if not changes:
        sys.stdout.write("nothing is installed\n")
    sys.stdout.write("next:\n" + "".join(f"  {step}\n" for step in steps))
