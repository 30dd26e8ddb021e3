"""The subcommand `omniserve reload`."""

import argparse
from typing import TYPE_CHECKING

from omniserve.commands.connection import ANSWER_TIMEOUT_S, add_admin_argument, open_admin
from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_UNCHANGED = (
    "tiers, tenants and models are as they were; certificates, if there are any, were read again"
)
_NOTHING_TO_CHANGE = "tiers, tenants and models would stay as they are"


def add_reload_command(subparsers: "Subparsers") -> None:
    """Register `reload`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "reload",
        help="have a daemon take over tiers, tenants, models and certificates of its changed file",
        description="Has a running daemon read its own configuration file again and take over its "
        "tiers, tenants and models, and the files of its certificates: all of it or, where "
        "anything is wrong, nothing. Models that are new or gone are loaded and unloaded after "
        "that. Tells what changed and what takes effect at the next start only. The exit status is "
        "2 where the file is refused, 3 where the daemon does not answer.",
    )
    add_admin_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="change nothing: tell what would change, and what both tiers, those in force and "
        "those of the file, would have made of the requests of the last hour",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=_reload)


def _reload(args: argparse.Namespace) -> int:
    """Raises ConfigError where the daemon refuses the file."""
    from omniserve.commands.json_output import print_json
    from omniserve.errors import ConfigError
    from omniserve.message_fields import message_fields

    answer = _ask(args)
    if args.json:
        print_json(message_fields(answer))
    if not answer.accepted:
        raise ConfigError(answer.error)
    if not args.json:
        _print(answer, is_dry_run=args.dry_run)
    return EXIT_OK


def _ask(args: argparse.Namespace) -> "pb.ReloadTiersResponse":
    from omniserve.reload.forecaster import LIMIT_S
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    # A daemon that forecasts for somebody else comes to this afterwards.
    timeout_s = ANSWER_TIMEOUT_S + (2 * LIMIT_S if args.dry_run else 0.0)
    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        request = pb.ReloadTiersRequest(dry_run=args.dry_run)
        answer: pb.ReloadTiersResponse = connection.ask(stub.ReloadTiers, request, timeout_s)
    return answer


def _print(answer: "pb.ReloadTiersResponse", *, is_dry_run: bool) -> None:
    from omniserve.terminal import make_console

    console = make_console()
    for line in _change_lines(answer, is_dry_run=is_dry_run):
        console.print(line, soft_wrap=True, markup=False)
    if is_dry_run:
        _print_forecast(answer)


def _change_lines(answer: "pb.ReloadTiersResponse", *, is_dry_run: bool) -> list[str]:
    from omniserve.reload.change_text import change_text

    if not answer.changes:
        lines = [_NOTHING_TO_CHANGE if is_dry_run else _UNCHANGED]
    else:
        lines = ["would be taken over:" if is_dry_run else "taken over:"]
        lines += [
            f"  {change_text(each.tier, each.key, each.before, each.after)}"
            for each in answer.changes
        ]
    if answer.needs_restart:
        lines.append("these keys differ too, and need a restart:")
        lines += [f"  {key}" for key in answer.needs_restart]
    lines += [f"note: {note}" for note in answer.notes]
    return lines


def _print_forecast(answer: "pb.ReloadTiersResponse") -> None:
    from omniserve.bench.report.table import draw
    from omniserve.reload.forecast_table import forecast_table
    from omniserve.terminal import make_console

    console = make_console()
    if answer.no_forecast:
        console.print(f"no forecast: {answer.no_forecast}", soft_wrap=True, markup=False)
        return
    console.print(
        f"\n{answer.num_arrivals:,} requests that arrived in {answer.arrivals_s:,.0f} s, simulated "
        "with the tiers in force and with those of the file:\n",
        soft_wrap=True,
    )
    console.print(draw(forecast_table(answer.forecast)))
    for note in answer.forecast_notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
