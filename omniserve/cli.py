"""The command line. Commands import what they need when they run, so that each starts quickly."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omniserve import __version__
from omniserve.errors import CheckpointError, ConfigError, OmniServeError

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Subparsers = argparse._SubParsersAction  # the type has no public name


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = build_parser().parse_args(argv)
    handler: Callable[[argparse.Namespace], int] = args.handler
    try:
        return handler(args)
    except OmniServeError as error:
        for line in str(error).splitlines():
            print(f"omniserve: {line}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError | CheckpointError) else EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    from omniserve.bench.command import add_bench_commands
    from omniserve.demo.command import add_demo_command
    from omniserve.explain_command import add_explain_command
    from omniserve.kernels_command import add_kernels_command
    from omniserve.profile_command import add_profile_command
    from omniserve.reload.command import add_reload_command
    from omniserve.simulate.command import add_simulate_commands
    from omniserve.synthetic.commands import add_model_commands

    parser = argparse.ArgumentParser(
        prog="omniserve",
        description="Serves language models to latency-sensitive and best-effort tiers.",
        epilog="`omniserve COMMAND --help` tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"omniserve {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve_command(subparsers)
    _add_config_commands(subparsers)
    add_reload_command(subparsers)
    add_explain_command(subparsers)
    add_model_commands(subparsers)
    add_kernels_command(subparsers)
    add_profile_command(subparsers)
    add_demo_command(subparsers)
    add_bench_commands(subparsers)
    add_simulate_commands(subparsers)
    return parser


def _add_serve_command(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "serve",
        help="run the daemon in the foreground",
        description="Runs the daemon in the foreground. One line on stdout says when it is ready; "
        "logs go to stderr. SIGTERM or Ctrl-C lets running requests end, a second one does not. "
        "SIGHUP takes over the tiers of the changed file.",
    )
    _add_config_argument(parser)
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="default: text"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least severe events to log (default: info)",
    )
    parser.add_argument(
        "--log-content",
        action="store_true",
        help="also log prompts and outputs; without this they are never logged",
    )
    parser.set_defaults(handler=_serve)


def _add_config_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    text = "Checks, shows and describes configuration files."
    parser = subparsers.add_parser("config", help="check a configuration file", description=text)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="validate a file",
        description="Validates a file. The checkpoints it names need not exist. "
        "The exit status is 0 where the file is right and 2 where it is not.",
    )
    _add_config_argument(check)
    check.set_defaults(handler=_config_check)
    show = commands.add_parser(
        "show",
        help="print a file with all defaults",
        description="Prints what a file means: every default filled in, every path absolute. "
        "The output is itself a configuration file.",
    )
    _add_config_argument(show)
    show.set_defaults(handler=_config_show)
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema",
        description="Prints the JSON Schema of configuration files, for editors and validators.",
    )
    schema.set_defaults(handler=_config_schema)


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    """The file is named alone or after --config."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("file", nargs="?", type=Path, metavar="FILE", help="configuration file")
    group.add_argument("--config", type=Path, metavar="FILE", help="the same, as an option")


def _config_path(args: argparse.Namespace) -> Path:
    path: Path = args.file or args.config
    return path


def _serve(args: argparse.Namespace) -> int:
    import asyncio
    import contextlib
    import logging

    from omniserve.config import load_config
    from omniserve.daemon import serve
    from omniserve.logs import LogSettings, configure_logging, get_logger, log_event

    def announce(line: str) -> None:
        # Nobody may be listening; serving goes on.
        with contextlib.suppress(OSError):
            print(line, flush=True)

    log_settings = LogSettings(args.log_format, args.log_level, args.log_content)
    configure_logging(log_settings)
    path = _config_path(args)
    config = load_config(path)
    try:
        asyncio.run(serve(config, path, announce, log_settings))
    except OmniServeError:
        raise
    except Exception as error:
        log_event(get_logger(__name__), "daemon_failed", level=logging.ERROR, error=error)
        return EXIT_FAILURE
    return EXIT_OK


def _config_check(args: argparse.Namespace) -> int:
    from omniserve.config import load_config
    from omniserve.config_piggyback import describe_piggybacking
    from omniserve.config_values import is_loopback
    from omniserve.installation import package_collisions

    config = load_config(_config_path(args))
    config.engine_settings()  # Raises where a file of step times cannot be used.
    for address in (config.listen.grpc, config.listen.http):
        if not is_loopback(address):
            print(f"omniserve: warning: {address} is open to the network", file=sys.stderr)
    for warning in package_collisions():
        print(f"omniserve: warning: {warning}", file=sys.stderr)
    models = ", ".join(model.name for model in config.models)
    tiers = ", ".join(f"{tier.name} ({tier.service_class})" for tier in config.tiers)
    listen = f"grpc {config.listen.grpc}, http {config.listen.http}"
    print(
        f"{_config_path(args)}: OK: models {models}; tiers {tiers}; {listen}; "
        f"piggybacking {describe_piggybacking(config.piggybacking())}"
    )
    return EXIT_OK


def _config_show(args: argparse.Namespace) -> int:
    import yaml

    from omniserve.config import load_config

    shown = load_config(_config_path(args)).model_dump(mode="json", exclude_none=True)
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
    return EXIT_OK


def _config_schema(args: argparse.Namespace) -> int:
    import json

    from omniserve.config import Config

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print(json.dumps(schema | Config.model_json_schema(mode="validation"), indent=2))
    return EXIT_OK
