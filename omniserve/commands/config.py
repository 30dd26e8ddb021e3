"""The subcommands of `omniserve config`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    from omniserve.config import Config
    from omniserve.tls import TlsFiles

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_config_commands(subparsers: "Subparsers") -> None:
    """Register `config` with its subcommands; their handlers return exit statuses."""
    text = "Checks, shows and describes configuration files."
    parser = subparsers.add_parser("config", help="check a configuration file", description=text)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="validate a file",
        description="Validates a file. The exit status is 0 where the file is right and 2 where it "
        "is not. Checkpoints and TLS files that cannot be served from here are warned of alone: "
        "the file may be meant for another machine or user.",
    )
    add_config_file_arguments(check)
    check.add_argument("--json", action="store_true", help="print JSON, problems included")
    check.set_defaults(handler=_check)
    show = commands.add_parser(
        "show",
        help="print a file with all defaults",
        description="Prints what a file means: every default filled in, every path absolute. "
        "The output is itself a configuration file.",
    )
    add_config_file_arguments(show)
    show.add_argument("--json", action="store_true", help="print JSON in place of YAML")
    show.set_defaults(handler=_show)
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema",
        description="Prints the JSON Schema of configuration files, for editors and validators.",
    )
    schema.set_defaults(handler=_schema)


def add_config_file_arguments(parser: argparse.ArgumentParser) -> None:
    """The file is named alone or after --config."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("file", nargs="?", type=Path, metavar="FILE", help="configuration file")
    group.add_argument("--config", type=Path, metavar="FILE", help="the same, as an option")


def config_path_of(args: argparse.Namespace) -> Path:
    """Of a command that has these arguments."""
    path: Path = args.file or args.config
    return path


def _check(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.errors import ConfigError

    path = config_path_of(args)
    try:
        config = _load(path)
    except ConfigError as error:
        if args.json:
            print_json({"file": str(path), "ok": False, "problems": str(error).splitlines()})
        raise
    warnings = list(_warnings(config, path))
    if args.json:
        print_json({"file": str(path), "ok": True, "warnings": warnings} | _summary(config))
        return EXIT_OK
    for warning in warnings:
        sys.stderr.write(f"omniserve: warning: {warning}\n")
    sys.stdout.write(f"{path}: OK: {_summary_line(config)}\n")
    return EXIT_OK


def _load(path: Path) -> "Config":
    """Raises ConfigError, also for what only shows where the file is used."""
    from omniserve.config import load_config

    config = load_config(path)
    # Raises where a file of step times cannot be used.
    config.engine_settings()
    return config


def _warnings(config: "Config", path: Path) -> Iterator[str]:
    from omniserve.errors import ConfigError
    from omniserve.installation import package_collisions
    from omniserve.listening import listening_warnings
    from omniserve.tls import TlsFiles

    yield from listening_warnings(config)
    if config.tls is not None:
        files = TlsFiles(config.tls, path.resolve().parent)
        with contextlib.suppress(ConfigError):
            yield from files.warnings()
        yield from _unserved(files)
    yield from _missing_checkpoints(config)
    yield from package_collisions()


def _unserved(files: "TlsFiles") -> Iterator[str]:
    """What is wrong with TLS files; not an error, as they may be right where they are served."""
    from omniserve.errors import ConfigError

    if files.are_handed_over:
        return
    try:
        files.read()
    except ConfigError as error:
        yield f"{error}; `omniserve serve` would refuse this here"


def _missing_checkpoints(config: "Config") -> Iterator[str]:
    for index, model in enumerate(config.models):
        for key, path in (("path", model.path), ("base", model.base)):
            # Not as a Path, which raises where a directory on the way may not be read.
            if path is not None and not os.path.isdir(path):
                yield (
                    f"models[{index}].{key} = {path!r}: no such directory; `omniserve serve` "
                    "would refuse this here"
                )


def _summary(config: "Config") -> dict[str, object]:
    from omniserve.config_piggyback import describe_piggybacking

    return {
        "models": [model.name for model in config.models],
        "tiers": [{"name": tier.name, "class": tier.service_class} for tier in config.tiers],
        "tenants": [tenant.name for tenant in config.tenants],
        "listen": config.listen.model_dump(mode="json"),
        "tls": config.tls is not None,
        "piggybacking": describe_piggybacking(config.piggybacking(), config.host.kv_bytes),
    }


def _summary_line(config: "Config") -> str:
    from omniserve.config_piggyback import describe_piggybacking

    parts = [
        "models " + ", ".join(model.name for model in config.models),
        "tiers " + ", ".join(f"{tier.name} ({tier.service_class})" for tier in config.tiers),
        _addresses(config),
        f"piggybacking {describe_piggybacking(config.piggybacking(), config.host.kv_bytes)}",
    ]
    if config.tenants:
        parts.insert(2, "tenants " + ", ".join(tenant.name for tenant in config.tenants))
    return "; ".join(parts)


def _addresses(config: "Config") -> str:
    from omniserve.listening import status_address

    status = status_address(config) or "with http"
    tls = "no TLS" if config.tls is None else "TLS"
    return f"grpc {config.listen.grpc}, http {config.listen.http}, status {status}, {tls}"


def _show(args: argparse.Namespace) -> int:
    import yaml

    from omniserve.commands.json_output import print_json
    from omniserve.config import load_config

    shown = load_config(config_path_of(args)).model_dump(mode="json", exclude_none=True)
    if args.json:
        print_json(shown)
    else:
        sys.stdout.write(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    return EXIT_OK


def _schema(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.config import Config

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print_json(schema | Config.model_json_schema(mode="validation"))
    return EXIT_OK
