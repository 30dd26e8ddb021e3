"""The subcommand `omniserve chat`."""

import argparse
import sys
from typing import TYPE_CHECKING

from omniserve.argument_types import utf8_text
from omniserve.commands.complete import add_output_arguments, print_answer
from omniserve.commands.connection import add_server_arguments, open_server
from omniserve.commands.exit_status import EXIT_OK
from omniserve.commands.generation import add_generation_arguments

if TYPE_CHECKING:
    from omniserve.commands.conversation import Conversation

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_chat_command(subparsers: "Subparsers") -> None:
    """Register `chat`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model that a daemon serves",
        description="Talks with a model that a running daemon serves. In a terminal it goes on "
        "until Ctrl-D; Ctrl-C stops an answer, and /help tells what else there is. With a message, "
        "or one on standard input, it prints the answer and ends.",
    )
    parser.add_argument(
        "message",
        nargs="?",
        type=utf8_text,
        metavar="MESSAGE",
        help="ask this and end (default: in a terminal, talk; else ask what is on standard input)",
    )
    parser.add_argument(
        "--system", type=utf8_text, default="", metavar="TEXT", help="told to the model first"
    )
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="do not keep what is typed for the arrow keys of the next time",
    )
    add_generation_arguments(parser)
    add_output_arguments(parser)
    add_server_arguments(parser)
    parser.set_defaults(handler=_chat)


def _chat(args: argparse.Namespace) -> int:
    from omniserve.commands.conversation import Conversation
    from omniserve.commands.generation import Generation, build_request, choose_model
    from omniserve.commands.piped_text import read_stdin
    from omniserve.errors import ConfigError

    conversation = Conversation(args.system)
    if args.message is None and sys.stdin.isatty() and sys.stdout.isatty():
        return _talk(args, conversation)
    question = read_stdin() if args.message is None else args.message
    if not question.strip():
        # A template makes a prompt of it, which would be answered and count against the quota.
        source = "standard input" if args.message is None else "MESSAGE"
        raise ConfigError(f"{source}: {question[:32]!r} asks nothing; allowed: text")
    with open_server(args) as connection:
        request = build_request(args, choose_model(connection, args.model))
        for said in conversation.messages(question):
            request.chat.messages.add(role=said.role, content=said.content)
        print_answer(Generation(connection, request), args)
    return EXIT_OK


def _talk(args: argparse.Namespace, conversation: "Conversation") -> int:
    from omniserve.commands.chat_session import ChatSession
    from omniserve.commands.generation import build_request, choose_model
    from omniserve.errors import ConfigError

    if args.json:
        raise ConfigError("--json: needs a MESSAGE, or one on standard input")
    with open_server(args) as connection:
        request = build_request(args, choose_model(connection, args.model))
        ChatSession(connection, request, conversation, has_history=not args.no_history).run()
    return EXIT_OK
