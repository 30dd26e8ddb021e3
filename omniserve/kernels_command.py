"""The subcommand `omniserve kernels warm-up`."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.errors import ConfigError
from omniserve.installation import environment_with_packages

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_COMMAND = (sys.executable, "-P", "-m", "omniserve.kernels_process")


def add_kernels_command(subparsers: "Subparsers") -> None:
    """Register `kernels` with its subcommand."""
    parser = subparsers.add_parser(
        "kernels",
        help="compile CPU kernels ahead",
        description="Looks after the compiled kernels of CPU devices.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    warm_up = commands.add_parser(
        "warm-up",
        help="compile what is not in the cache yet",
        description="Compiles the kernels that models need on a CPU device, where they are not in "
        "the cache yet, and prints a table. A daemon that starts afterwards loads them. "
        "The exit status is 1 where they could not be saved.",
    )
    files = warm_up.add_mutually_exclusive_group()
    files.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="configuration file with the models"
    )
    files.add_argument("--config", type=Path, metavar="FILE", help="the same, as an option")
    warm_up.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="CACHE:QUERIES:HEAD_DIM[:bfloat16]",
        help="one more attention kernel, such as int8:bfloat16:128; may be repeated; "
        "elements are float32, float16, bfloat16 and, of a cache, int8; with :bfloat16 behind it "
        "weights are rounded to bfloat16 before they meet the values (faster, less exact), which "
        "takes a cache and queries of bfloat16",
    )
    warm_up.add_argument("--json", action="store_true", help="print JSON instead of a table")
    warm_up.set_defaults(handler=_warm_up)


def _warm_up(arguments: argparse.Namespace) -> int:
    file = arguments.file or arguments.config
    if file is None and not arguments.variant:
        raise ConfigError("kernels warm-up: a configuration FILE or a --variant is needed")
    models = [] if file is None else _models_of(file)
    # A process of its own: only there are the compiler and its minutes of work.
    options = [f"--model={model}" for model in models] + ["--json"] * arguments.json
    command = [*_COMMAND, *options, "--", *arguments.variant]
    return subprocess.run(
        command, env=environment_with_packages(os.environ), check=False
    ).returncode


def _models_of(file: Path) -> list[str]:
    """ELEMENT:HEAD_DIM of each model. Raises ConfigError and CheckpointError."""
    from omniserve.config import load_config
    from omniserve.synthetic.info import model_report

    models = load_config(file).models
    return [f"{model.dtype}:{model_report(model.checkpoint_path).head_dim}" for model in models]
