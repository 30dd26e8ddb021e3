"""The subcommands of `omniserve model`."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.synthetic.presets import ARCHITECTURES, DTYPES, PRESETS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_QUIET_S = 1.0
_REPORT_EVERY_S = 2.0


def add_checkpoint_commands(commands: "Subparsers") -> None:
    """Register `new` and `info`; each sets `handler`, which returns an exit code."""
    new = commands.add_parser(
        "new",
        help="write a checkpoint with random weights",
        description="Writes a Hugging Face checkpoint with random weights, a tokenizer and a chat "
        "template. It loads in transformers and in vLLM as it is.",
    )
    new.add_argument("directory", metavar="DIR", help="where to write it: absent or empty")
    new.add_argument(
        "--arch",
        choices=tuple(ARCHITECTURES),
        default="llama",
        help="architecture (default: llama)",
    )
    new.add_argument(
        "--preset",
        choices=PRESETS,
        default="small",
        help="size of the model; 8b takes about 15 GiB in bfloat16 (default: small)",
    )
    new.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: bfloat16)"
    )
    new.add_argument("--seed", type=int, default=0, help="same seed, same weights (default 0)")
    new.add_argument("--vocab-size", type=int, help="pad the vocabulary to this many tokens")
    new.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    new.add_argument("--json", action="store_true", help="print JSON")
    new.set_defaults(handler=_new)

    finetune = commands.add_parser(
        "finetune",
        help="write a copy of a checkpoint whose last layers differ",
        description="Writes a checkpoint that equals another one, bit for bit, except for its last "
        "layers, whose weights are changed at random: what a fine-tune of a base is to the memory "
        "of a server.",
    )
    finetune.add_argument("base", metavar="BASE", help="the checkpoint to start from")
    finetune.add_argument("directory", metavar="DIR", help="where to write it: absent or empty")
    finetune.add_argument(
        "--layers-from",
        type=float,
        default=0.75,
        metavar="PART",
        help="part of the layers that stay as they are (default: 0.75)",
    )
    finetune.add_argument("--seed", type=int, default=0, help="same seed, same change (default 0)")
    finetune.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    finetune.add_argument("--json", action="store_true", help="print JSON")
    finetune.set_defaults(handler=_finetune)

    _add_adapter(commands)

    info = commands.add_parser(
        "info",
        help="print the sizes of a checkpoint or adapter",
        description="Prints architecture, parameters and KV bytes per token of a checkpoint, or "
        "rank and parameters of a LoRA adapter, from its config and headers alone.",
    )
    info.add_argument("directory", metavar="DIR", help="the checkpoint or adapter")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(handler=_info)


def _add_adapter(commands: "Subparsers") -> None:
    adapter = commands.add_parser(
        "adapter",
        help="write a LoRA adapter of a checkpoint, with random weights",
        description="Writes a LoRA adapter in PEFT's format, whose weights are random, for all "
        "projections of the dense layers of a checkpoint.",
    )
    adapter.add_argument("base", metavar="BASE", help="the checkpoint that it is to change")
    adapter.add_argument("directory", metavar="DIR", help="where to write it: absent or empty")
    adapter.add_argument("--rank", type=int, default=8, help="of each change (default: 8)")
    adapter.add_argument(
        "--targets",
        metavar="NAMES",
        help="projections to change, with commas between them, as q_proj,v_proj (default: all)",
    )
    adapter.add_argument("--seed", type=int, default=0, help="same seed, same weights (default 0)")
    adapter.add_argument("--force", action="store_true", help="replace an adapter that is there")
    adapter.add_argument("--json", action="store_true", help="print JSON")
    adapter.set_defaults(handler=_adapter)


def _new(arguments: argparse.Namespace) -> int:
    from omniserve.synthetic.create import write_checkpoint

    path = write_checkpoint(
        arguments.directory,
        arch=arguments.arch,
        preset=arguments.preset,
        dtype=arguments.dtype,
        seed=arguments.seed,
        vocab_size=arguments.vocab_size,
        force=arguments.force,
        progress=_ProgressLines(),
    )
    return _say_written(path, arguments)


def _finetune(arguments: argparse.Namespace) -> int:
    from omniserve.synthetic.finetune import write_finetune

    path = write_finetune(
        arguments.base,
        arguments.directory,
        layers_from=arguments.layers_from,
        seed=arguments.seed,
        force=arguments.force,
        progress=_ProgressLines(),
    )
    return _say_written(path, arguments)


def _adapter(arguments: argparse.Namespace) -> int:
    from omniserve.adapter_checkpoint import PROJECTIONS
    from omniserve.synthetic.adapter import write_adapter

    targets = PROJECTIONS if arguments.targets is None else arguments.targets.split(",")
    path = write_adapter(
        arguments.base,
        arguments.directory,
        rank=arguments.rank,
        seed=arguments.seed,
        targets=targets,
        force=arguments.force,
        progress=_ProgressLines(),
    )
    return _say_written(path, arguments)


def _say_written(path: Path, arguments: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json

    if arguments.json:
        print_json({"path": str(path)})
    else:
        sys.stdout.write(f"wrote {path}\n")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from omniserve.adapter_checkpoint import is_adapter
    from omniserve.commands.json_output import print_json
    from omniserve.synthetic.adapter_info import adapter_report, describe_adapter
    from omniserve.synthetic.info import describe, model_report

    if is_adapter(arguments.directory):
        adapter = adapter_report(arguments.directory)
        fields, text = asdict(adapter), describe_adapter(adapter)
    else:
        report = model_report(arguments.directory)
        fields, text = asdict(report), describe(report)
    if arguments.json:
        print_json(fields)
    else:
        sys.stdout.write(text + "\n")
    return 0


class _ProgressLines:
    """A line on stderr now and then, and none for work that is soon done."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _QUIET_S
        self._has_begun = False

    def __call__(self, written: int, total: int) -> None:
        is_end = self._has_begun and written >= total
        if time.monotonic() < self._next and not is_end:
            return
        self._has_begun = True
        self._next = time.monotonic() + _REPORT_EVERY_S
        share = 100 * written // total
        sys.stderr.write(f"weights: {written >> 20} of {total >> 20} MiB ({share}%)\n")
