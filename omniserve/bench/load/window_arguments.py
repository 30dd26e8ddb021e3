"""--duration-s and its like: the same for whatever replays load, real or simulated."""

import argparse

from omniserve.argument_types import number, whole_number
from omniserve.bench.load.options import LoadOptions

_MAX_S = 864_000


def add_window_arguments(
    parser: argparse.ArgumentParser,
    defaults: LoadOptions,
    *,
    duration_s: float | None,
    duration_default: str = "%(default)g",
) -> None:
    """Adds --duration-s, --warm-up-s, --drain-s and --seed; the help tells `duration_default`."""
    for option, default, least, text in (
        ("--duration-s", duration_s, 1, "length of the measured part"),
        ("--warm-up-s", defaults.warm_up_s, 0, "load before it"),
        ("--drain-s", defaults.drain_s, 0, "how long requests of traces may go on after it"),
    ):
        shown = duration_default if option == "--duration-s" else "%(default)g"
        parser.add_argument(
            option,
            type=number("seconds", least, _MAX_S),
            metavar="S",
            default=default,
            help=f"{text} (default: {shown})",
        )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 1 << 31),
        metavar="N",
        default=defaults.seed,
        help="same seed, same requests (default: %(default)s)",
    )


def window_of(args: argparse.Namespace, duration_s: float, title: str) -> LoadOptions:
    """What those arguments say, with a duration where they may leave it open."""
    return LoadOptions(
        duration_s=duration_s,
        warm_up_s=args.warm_up_s,
        drain_s=args.drain_s,
        seed=args.seed,
        title=title,
    )
