"""A parser whose complaints come with the usage of the command that they are about."""

import argparse
import sys
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Parsers of subcommands are of this kind too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Ends the program where something is not known, and where no command is named."""
        given = sys.argv[1:] if args is None else args
        if not given and self._subparsers is not None:
            # Whoever names no command may want to know which there are.
            self.print_help(sys.stderr)
            self.exit(2)
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            # Here: left to the parser above, the message would come with that one's usage.
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown
