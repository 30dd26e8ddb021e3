"""The subcommand `omniserve simulate roofline`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import number, whole_number

if TYPE_CHECKING:
    from omniserve.simulate.roofline import ModelSize

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEVICES = {
    "a100-80gb": (312e12, 2.039e12),
    "h100-sxm": (989e12, 3.35e12),
    "h200-sxm": (989e12, 4.8e12),
    "l40s": (362e12, 864e9),
}
"""Peak operations (dense, 16 bits) and bytes a second, from NVIDIA's data sheets."""

_SIZES = (
    ("--parameters", "N", "parameters"),
    ("--layers", "N", "decoder layers"),
    ("--heads", "N", "query heads"),
    ("--kv-heads", "N", "key and value heads"),
    ("--head-dim", "N", "elements of a head"),
)


def add_roofline_command(subparsers: "Subparsers") -> None:
    """Register `roofline`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "roofline",
        help="make a profile of a device that is not there",
        description="Writes a profile whose step times follow from a device's two peak rates (the "
        "roofline model): good for what-if questions, not for promises. The model is a checkpoint "
        "or five numbers; dense models only.",
    )
    parser.add_argument("--name", default="model", help="the model's name (default: %(default)s)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="take the model's sizes from here"
    )
    for option, unit, text in _SIZES:
        # 8.03e9 is how one says how many parameters there are.
        kind = number(text, 1, 1e13) if option == "--parameters" else whole_number(1, 1 << 20)
        parser.add_argument(option, type=kind, metavar=unit, help=f"{text} of the model")
    parser.add_argument(
        "--max-positions",
        type=whole_number(2, 1 << 30),
        default=8192,
        metavar="N",
        help="longest sequence of the model, without --checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=sorted(_DEVICES),
        default="h100-sxm",
        help="a device that is known (default: %(default)s)",
    )
    for option, text in (
        ("--flops-per-s", "peak operations a second of another device"),
        ("--bytes-per-s", "peak bytes a second of its memory"),
    ):
        parser.add_argument(option, type=number(text, 1e6, 1e18), metavar="N", help=text)
    parser.add_argument(
        "--launch-s",
        type=number("seconds", 0, 10),
        metavar="S",
        default=2e-3,
        help="in which the host launches a step's layers; best-effort steps give way between two "
        "of them (default: %(default)g)",
    )
    parser.add_argument(
        "--host-bytes-per-s",
        type=number("bytes per second", 1e6, 1e15),
        metavar="N",
        default=100e9,
        help="at which host attention reads KV (default: %(default)g)",
    )
    parser.add_argument(
        "--copy-bytes-per-s",
        type=number("bytes per second", 1e6, 1e15),
        metavar="N",
        default=20e9,
        help="at which KV moves between device and host (default: %(default)g)",
    )
    parser.add_argument(
        "--host-cores", type=whole_number(2, 4096), default=32, metavar="N", help="of the machine"
    )
    parser.add_argument(
        "--host-memory-bytes",
        type=number("bytes", 1e9, 1e15),
        default=256 * 2**30,
        metavar="N",
        help="of the machine (default: %(default)g)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the profile")
    parser.add_argument("--json", action="store_true", help="print the profile")
    parser.set_defaults(handler=_roofline)


def _roofline(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json_file
    from omniserve.machine import Machine
    from omniserve.profiling.profile import HostModel, Profile, save_profile
    from omniserve.simulate.roofline import DevicePeaks, roofline_step_time
    from omniserve.terminal import make_console

    size, max_positions = _model(args)
    flops_per_s, bytes_per_s = _DEVICES[args.device]
    peaks = DevicePeaks(args.flops_per_s or flops_per_s, args.bytes_per_s or bytes_per_s)
    memory_bytes = int(args.host_memory_bytes)
    is_named = args.flops_per_s is None and args.bytes_per_s is None
    device = args.device if is_named else f"{peaks.flops_per_s:g} FLOP/s, {peaks.bytes_per_s:g} B/s"
    profile = Profile(
        model=args.name,
        device=f"{device} (roofline)",
        num_layers=size.num_layers,
        kv_bytes_per_token=size.kv_bytes_per_token,
        max_positions=max_positions,
        step_time=roofline_step_time(size, peaks),
        pipeline_depth=2,
        launch_s=args.launch_s,
        host=HostModel(args.host_bytes_per_s, copy_bytes_per_s=args.copy_bytes_per_s),
        machine=Machine(args.host_cores, memory_bytes, memory_bytes),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_profile(profile, args.out)
    if args.json:
        print_json_file(args.out)
    else:
        make_console().print(f"{args.out}: {args.name} on {profile.device}", soft_wrap=True)
    return 0


def _model(args: argparse.Namespace) -> "tuple[ModelSize, int]":
    from omniserve.errors import ConfigError
    from omniserve.simulate.roofline import ModelSize

    if args.checkpoint is not None:
        return _model_of_checkpoint(args.checkpoint)
    values = []
    for option, _, text in _SIZES:
        value = getattr(args, option.removeprefix("--").replace("-", "_"))
        if value is None:
            raise ConfigError(f"{option}: is needed without --checkpoint: {text} of the model")
        values.append(int(value))
    num_parameters, num_layers, num_heads, num_kv_heads, head_dim = values
    kv_bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * 2
    size = ModelSize(num_parameters, 2, num_layers, num_heads * head_dim, kv_bytes_per_token)
    return size, args.max_positions


def _model_of_checkpoint(directory: Path) -> "tuple[ModelSize, int]":
    from omniserve.errors import ConfigError
    from omniserve.simulate.roofline import ModelSize
    from omniserve.synthetic.info import model_report

    report = model_report(directory)
    if report.num_experts:
        raise ConfigError(f"--checkpoint: {directory} has experts; dense models only")
    size = ModelSize(
        num_parameters=report.num_parameters,
        bytes_per_parameter=report.weight_bytes / report.num_parameters,
        num_layers=report.num_layers,
        query_size=report.num_heads * report.head_dim,
        kv_bytes_per_token=report.kv_bytes_per_token,
    )
    return size, report.max_positions
