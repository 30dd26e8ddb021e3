"""The subcommand `omniserve serve`."""

import argparse
import sys
from typing import TYPE_CHECKING

from omniserve.commands.config import add_config_file_arguments, config_path_of
from omniserve.commands.exit_status import EXIT_FAILURE, EXIT_OK
from omniserve.errors import OmniServeError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_serve_command(subparsers: "Subparsers") -> None:
    """Register `serve`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "serve",
        help="run the daemon in the foreground",
        description="Runs the daemon in the foreground. One line on stdout says when it is ready; "
        "logs go to stderr. SIGTERM or Ctrl-C lets running requests end, a second one does not. "
        "SIGHUP takes over what may change of the changed file.",
    )
    add_config_file_arguments(parser)
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


def _serve(args: argparse.Namespace) -> int:
    import asyncio
    import contextlib
    import logging

    from omniserve.config import load_config
    from omniserve.daemon import serve
    from omniserve.log_writer import written_in_background
    from omniserve.logs import LogSettings, configure_logging, get_logger, log_event

    def announce(line: str) -> None:
        # Nobody may be listening; serving goes on.
        with contextlib.suppress(OSError):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    log_settings = LogSettings(args.log_format, args.log_level, args.log_content)
    configure_logging(log_settings)
    path = config_path_of(args)
    config = load_config(path)
    # Its event loop has to go on answering also where nobody reads its log.
    with written_in_background():
        try:
            asyncio.run(serve(config, path, announce, log_settings))
        except OmniServeError:
            raise
        except Exception as error:
            log_event(get_logger(__name__), "daemon_failed", level=logging.ERROR, error=error)
            return EXIT_FAILURE
    return EXIT_OK
