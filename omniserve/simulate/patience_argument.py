"""--patience-s: the same for whatever measures on a machine that others may use."""

import argparse

from omniserve.argument_types import number


def add_patience_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience-s",
        type=number("seconds", 0, 3600),
        metavar="S",
        default=0.5,
        help="longest wait, before each measurement, for other processes to leave the cores alone "
        "(default: %(default)g)",
    )
