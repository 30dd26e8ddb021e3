"""The subcommand `omniserve completion`: what the Tab key of shells completes."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

SHELLS = ("bash", "zsh", "fish")


def add_completion_command(subparsers: "Subparsers", whole: argparse.ArgumentParser) -> None:
    """Register `completion` for everything that `whole` knows; its handler returns an exit
    status."""
    parser = subparsers.add_parser(
        "completion",
        help="print what a shell needs to complete commands and options",
        description="Prints a script that teaches a shell to complete commands, options and file "
        "names. bash: add `source <(omniserve completion bash)` to ~/.bashrc. zsh: write it to a "
        "file _omniserve in a directory of $fpath. fish: write it to "
        "~/.config/fish/completions/omniserve.fish.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell it is for")
    parser.set_defaults(handler=partial(_completion, whole))


def _completion(whole: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    import shtab

    for action in _actions(whole):
        if action.type is Path:
            # shtab looks for an attribute that argparse knows nothing of.
            kind = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
            vars(action)["complete"] = kind
    sys.stdout.write(shtab.complete(whole, args.shell) + "\n")
    return EXIT_OK


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of a parser and of all below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
