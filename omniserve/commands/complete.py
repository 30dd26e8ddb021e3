"""The subcommand `omniserve complete`."""

import argparse
import sys
from typing import TYPE_CHECKING

from omniserve.argument_types import utf8_text
from omniserve.commands.connection import add_server_arguments, open_server
from omniserve.commands.exit_status import EXIT_OK
from omniserve.commands.generation import add_generation_arguments

if TYPE_CHECKING:
    from omniserve.commands.generation import Generation

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_complete_command(subparsers: "Subparsers") -> None:
    """Register `complete`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "complete",
        help="have a text continued by a daemon",
        description="Sends a text to a running daemon and prints what continues it, as it comes. "
        "Ctrl-C ends the request.",
    )
    parser.add_argument(
        "prompt",
        nargs="?",
        type=utf8_text,
        metavar="TEXT",
        help="what to continue (default: standard input, without its last line end)",
    )
    add_generation_arguments(parser)
    add_output_arguments(parser)
    add_server_arguments(parser)
    parser.set_defaults(handler=_complete)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """`print_answer` reads them."""
    parser.add_argument(
        "--json", action="store_true", help="print JSON at the end: the text and what it took"
    )
    parser.add_argument(
        "--figures", action="store_true", help="tell tokens and times on stderr afterwards"
    )


def print_answer(generation: "Generation", args: argparse.Namespace) -> None:
    """All of it, in the form that was asked for. Raises OmniServeError."""
    from omniserve.commands.answer_writer import AnswerWriter
    from omniserve.commands.json_output import print_json

    writer = AnswerWriter()
    try:
        for piece in generation:
            if not args.json:
                writer.write(piece)
    finally:
        # Also where it ends too early: a message follows.
        writer.end_line()
    if args.json:
        print_json(generation.result())
    if args.figures:
        sys.stderr.write(f"{generation.figures()}\n")


def _complete(args: argparse.Namespace) -> int:
    from omniserve.commands.generation import Generation, build_request, choose_model
    from omniserve.commands.piped_text import read_stdin

    with open_server(args) as connection:
        text = read_stdin() if args.prompt is None else args.prompt
        request = build_request(args, choose_model(connection, args.model))
        request.text = text
        print_answer(Generation(connection, request), args)
    return EXIT_OK
