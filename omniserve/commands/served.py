"""The subcommands `omniserve models` and `omniserve tiers`: what a daemon serves."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from omniserve.commands.connection import (
    Connection,
    add_admin_argument,
    add_server_arguments,
    open_server,
)
from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    from omniserve.bench.report.rows import TextTable
    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_models_command(subparsers: "Subparsers") -> None:
    """Register `models`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "models",
        help="list the models that a daemon serves",
        description="Lists the models that a running daemon serves; where it has tenants, those "
        "that the token may use.",
    )
    add_server_arguments(parser)
    parser.add_argument(
        "--sharing",
        action="store_true",
        help="tell instead which models hold the same weights in memory, and what that saves; "
        "asks the daemon's Admin service, as it tells of all models",
    )
    add_admin_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(handler=_models)


def add_tiers_command(subparsers: "Subparsers") -> None:
    """Register `tiers`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "tiers",
        help="list the tiers that a daemon serves",
        description="Lists the tiers of a running daemon and what they promise; where it has "
        "tenants, those that the token may use.",
    )
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(handler=_tiers)


def list_served(connection: Connection) -> "pb.ListModelsResponse":
    """Raises OmniServeError."""
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    stub = omniserve_pb2_grpc.InferenceStub(connection.channel)
    answer: pb.ListModelsResponse = connection.ask(stub.ListModels, pb.ListModelsRequest())
    return answer


def _models(args: argparse.Namespace) -> int:
    if args.sharing:
        from omniserve.commands.sharing import show_sharing

        return show_sharing(args)
    return _show(args, "models", _models_table)


def _tiers(args: argparse.Namespace) -> int:
    return _show(args, "tiers", _tiers_table)


def _show(
    args: argparse.Namespace, key: str, table_of: Callable[["pb.ListModelsResponse"], "TextTable"]
) -> int:
    """One part of what is served; `key` is its field in the answer and its name in JSON."""
    from omniserve.commands.json_output import print_json
    from omniserve.message_fields import message_fields

    with open_server(args) as connection:
        listed = list_served(connection)
    if args.json:
        print_json({key: [message_fields(each) for each in getattr(listed, key)]})
    else:
        _print_table(table_of(listed))
    return EXIT_OK


def _print_table(table: "TextTable") -> None:
    from omniserve.bench.report.table import draw
    from omniserve.terminal import make_console

    make_console().print(draw(table))


def _models_table(listed: "pb.ListModelsResponse") -> "TextTable":
    from omniserve.bench.report.rows import TextTable
    from omniserve.charts.text import NOTHING
    from omniserve.terminal import printable

    headings = (
        *("model", "architecture", "dtype", "parameters", "layers", "context"),
        *("default tier", "aliases", "state"),
    )
    rows = [
        [
            printable(model.name),
            printable(model.architecture),
            printable(model.dtype),
            f"{model.num_parameters:,}",
            str(model.num_layers),
            f"{model.max_model_len:,}",
            printable(model.default_tier),
            ", ".join(map(printable, model.aliases)) or NOTHING,
            printable(model.state) or NOTHING,
        ]
        for model in listed.models
    ]
    return TextTable("models", headings, rows)


def _tiers_table(listed: "pb.ListModelsResponse") -> "TextTable":
    from omniserve.bench.report.rows import TextTable
    from omniserve.charts.text import NOTHING
    from omniserve.terminal import printable

    headings = (
        *("tier", "class", "TTFT ms", "TPOT ms", "of requests", "admission"),
        *("fallback", "most waiting", "demoted after", "asleep after s"),
    )
    rows = [
        [
            printable(tier.name),
            tier.service_class.replace("_", "-"),
            f"{tier.ttft_ms:g}" if tier.HasField("ttft_ms") else NOTHING,
            f"{tier.tpot_ms:g}" if tier.HasField("tpot_ms") else NOTHING,
            f"{tier.percentile:g} %" if tier.HasField("percentile") else NOTHING,
            "yes" if tier.admission else "no",
            printable(tier.fallback) or NOTHING,
            f"{tier.max_waiting:,}" if tier.HasField("max_waiting") else NOTHING,
            f"{tier.demote_after_tokens:,}" if tier.HasField("demote_after_tokens") else NOTHING,
            f"{tier.sleep_after_s:g}" if tier.HasField("sleep_after_s") else NOTHING,
        ]
        for tier in listed.tiers
    ]
    return TextTable("tiers", headings, rows)
