"""The subcommand `omniserve reload`."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_ADDRESS = "127.0.0.1:50051"
_ANSWER_TIMEOUT_S = 30.0


def add_reload_command(subparsers: "Subparsers") -> None:
    """Register `reload`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "reload",
        help="have a daemon take over the tiers of its changed file",
        description="Has a running daemon read its own configuration file again and take over the "
        "tiers, all of them or, where anything in the file is wrong, none. Tells what changed and "
        "what takes effect at the next start only. The exit status is 2 where the file is refused, "
        "1 where the daemon does not answer.",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        default=_DEFAULT_ADDRESS,
        help="the daemon's gRPC address (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="change nothing: tell what would change, and what both tiers, those in force and "
        "those of the file, would have made of the requests of the last hour",
    )
    parser.set_defaults(handler=_reload)


def _reload(args: argparse.Namespace) -> int:
    """Raises ConfigError where the daemon refuses the file."""
    from omniserve.errors import ConfigError
    from omniserve.terminal import make_console

    answer = _ask(args.address, is_dry_run=args.dry_run)
    if not answer.accepted:
        raise ConfigError(answer.error)
    console = make_console()
    for line in _change_lines(answer, is_dry_run=args.dry_run):
        console.print(line, soft_wrap=True, markup=False)
    if args.dry_run:
        _print_forecast(answer)
    return 0


def _ask(address: str, *, is_dry_run: bool) -> "pb.ReloadTiersResponse":
    import grpc

    from omniserve.config_values import split_address
    from omniserve.errors import ConfigError, OmniServeError
    from omniserve.reload.forecaster import LIMIT_S
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    try:
        split_address(address)
    except ValueError as error:
        raise ConfigError(f"--address {address}: {error}; give host:port") from None
    # A daemon that forecasts for somebody else comes to this afterwards.
    timeout_s = _ANSWER_TIMEOUT_S + (2 * LIMIT_S if is_dry_run else 0.0)
    with grpc.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        stub = omniserve_pb2_grpc.AdminStub(channel)
        try:
            request = pb.ReloadTiersRequest(dry_run=is_dry_run)
            answer: pb.ReloadTiersResponse = stub.ReloadTiers(request, timeout=timeout_s)
            return answer
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            raise OmniServeError(
                f"{address} does not answer: gRPC {error.code().name}: {error.details() or ''}"
            ) from None


def _change_lines(answer: "pb.ReloadTiersResponse", *, is_dry_run: bool) -> list[str]:
    from omniserve.reload.change_text import change_text

    if not answer.changes:
        lines = ["the tiers are as they were"]
    else:
        lines = ["the tiers would change:" if is_dry_run else "the tiers have changed:"]
        lines += [
            f"  {change_text(each.tier, each.key, each.before, each.after)}"
            for each in answer.changes
        ]
    if answer.needs_restart:
        lines.append("these keys differ too, and need a restart:")
        lines += [f"  {key}" for key in answer.needs_restart]
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
