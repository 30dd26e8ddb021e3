"""`omniserve models --sharing`: which models hold the same weights, and what that saves."""

import argparse
from typing import Any

from omniserve.bench.report.rows import TextTable
from omniserve.charts.text import NOTHING
from omniserve.commands.exit_status import EXIT_OK
from omniserve.commands.json_output import print_json
from omniserve.commands.status import ask_status
from omniserve.message_fields import message_fields
from omniserve.terminal import make_console, printable
from omniserve.v1 import omniserve_pb2 as pb

_MIB = 1 << 20


def show_sharing(args: argparse.Namespace) -> int:
    """Of the daemon that `--admin` names; raises OmniServeError."""
    from omniserve.bench.report.table import draw

    models = [model for model in ask_status(args).models if model.HasField("weights")]
    if args.json:
        print_json(sharing_fields(models))
        return EXIT_OK
    console = make_console()
    console.print(draw(sharing_table(models)))
    console.print(sharing_sum(models), soft_wrap=True, markup=False)
    return EXIT_OK


def sharing_fields(models: list[pb.ModelStatus]) -> dict[str, Any]:
    """For JSON, in bytes."""
    return {
        "models": [{"name": model.name} | message_fields(model.weights) for model in models],
        "held_bytes": _held_bytes(models),
        "resident_bytes": _held_bytes(models) - _saved_bytes(models),
    }


def sharing_table(models: list[pb.ModelStatus]) -> TextTable:
    """A row for each model."""
    headings = ("model", "own MiB", "shared MiB", "saved MiB", "shared with")
    rows = [
        [
            printable(model.name),
            _mib(model.weights.own_bytes),
            _mib(model.weights.shared_bytes),
            _mib(model.weights.saved_bytes),
            _others(model.weights),
        ]
        for model in models
    ]
    return TextTable("weights", headings, rows)


def sharing_sum(models: list[pb.ModelStatus]) -> str:
    """What all of it comes to, as a line."""
    if not models:
        return "No weights are in memory."
    held, saved = _held_bytes(models), _saved_bytes(models)
    share = saved / held if held else 0.0
    resident = _mib(held - saved)
    return f"{resident} MiB are in memory, where {_mib(held)} MiB are used: {share:.0%} saved"


def _others(weights: pb.WeightStatus) -> str:
    # Most in common first.
    others = sorted(weights.shared_with.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{printable(name)} ({_mib(n)})" for name, n in others) or NOTHING


def _held_bytes(models: list[pb.ModelStatus]) -> int:
    return sum(model.weights.own_bytes + model.weights.shared_bytes for model in models)


def _saved_bytes(models: list[pb.ModelStatus]) -> int:
    return sum(model.weights.saved_bytes for model in models)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.1f}"
