"""What `omniserve model info` says of a LoRA adapter, from its config and safetensors header."""

import os
import re
from dataclasses import dataclass

from omniserve.adapter_checkpoint import WEIGHTS_NAME, read_adapter_files

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """An adapter by itself: whether it fits a base shows beside that."""

    ranks: tuple[int, ...]
    """All that there are, the smallest first."""
    alpha: float
    is_rank_stabilised: bool
    targets: tuple[str, ...]
    num_layers: int
    """That it changes."""
    num_parameters: int
    weight_bytes: int
    base_hint: str
    """What its base was called where it was trained; may be empty."""


def adapter_report(directory: str | os.PathLike[str]) -> AdapterReport:
    """Inspect an adapter; CheckpointError where it is missing, broken or not supported."""
    files = read_adapter_files(directory)
    layers = {found[1] for name in files.pairs if (found := _LAYER.match(name)) is not None}
    return AdapterReport(
        ranks=tuple(sorted({pair.rank for pair in files.pairs.values()})),
        alpha=files.config.alpha,
        is_rank_stabilised=files.config.is_rank_stabilised,
        targets=tuple(sorted({name.rpartition(".")[2] for name in files.pairs})),
        num_layers=len(layers),
        num_parameters=files.num_parameters,
        weight_bytes=(files.path / WEIGHTS_NAME).stat().st_size,
        base_hint=files.config.base_hint,
    )


def describe_adapter(report: AdapterReport) -> str:
    """The report as lines of text, one figure each."""
    scale = " / sqrt(rank)" if report.is_rank_stabilised else " / rank"
    rows = (
        ("kind", "LoRA adapter"),
        ("rank", ", ".join(map(str, report.ranks))),
        ("scale", f"{report.alpha:g}{scale}"),
        ("targets", _shown(", ".join(report.targets))),
        ("layers changed", f"{report.num_layers}"),
        ("parameters", f"{report.num_parameters:,}"),
        ("weights on disk", f"{report.weight_bytes / (1 << 20):,.1f} MiB"),
        ("trained on", _shown(report.base_hint) or "(not told)"),
    )
    return "\n".join(f"{label:<20}{value}" for label, value in rows)


def _shown(text: str) -> str:
    """It may be anything that somebody wrote into a file."""
    return text if text.isprintable() else repr(text)
