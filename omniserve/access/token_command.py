"""The subcommand `omniserve token`."""

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_token_command(subparsers: "Subparsers") -> None:
    """Register `token` with its subcommand."""
    parser = subparsers.add_parser(
        "token", help="make bearer tokens of tenants", description="Makes bearer tokens of tenants."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    new = commands.add_parser(
        "new",
        help="make a token and print it with its hash",
        description="Prints a new token, for the client alone, and its SHA-256, for the tenant's "
        "token_sha256 in the configuration. Neither is kept anywhere, and the token cannot be had "
        "from its hash.",
    )
    new.add_argument("--json", action="store_true", help="print one JSON object")
    new.set_defaults(handler=_new)


def _new(args: argparse.Namespace) -> int:
    from omniserve.access.bearer_token import hash_of, new_token
    from omniserve.terminal import make_console

    token = new_token()
    if args.json:
        text = json.dumps({"token": token, "token_sha256": hash_of(token)})
    else:
        text = f"token:        {token}\ntoken_sha256: {hash_of(token)}"
    make_console().print(text, soft_wrap=True, markup=False)
    return 0
