"""What a LoRA adapter's directory holds, and how it fits its base: from JSON and headers alone.

Needs neither torch nor transformers, as `omniserve.checkpoint`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from omniserve.adapter_config import ALL_LINEAR, CONFIG_NAME, AdapterConfig
from omniserve.checkpoint import (
    CheckpointSummary,
    TensorInfo,
    inspect_checkpoint,
    read_header,
    require_directory,
)
from omniserve.errors import CheckpointError

WEIGHTS_NAME = "adapter_model.safetensors"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of a dense decoder layer; others cannot be changed by an adapter."""
DTYPES = ("F64", "F32", "BF16", "F16")
EMBEDDING = "model.embed_tokens"

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_SERVED = re.compile(rf"model\.layers\.(\d+)\.(?:self_attn|mlp)\.({'|'.join(PROJECTIONS)})")


@dataclass(frozen=True, slots=True)
class LowRankPair:
    """The two tensors that change one projection."""

    down: TensorInfo
    """lora_A [rank, in_features]."""
    up: TensorInfo
    """lora_B [out_features, rank]."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def num_parameters(self) -> int:
        return self.down.num_elements + self.up.num_elements


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter by itself."""

    path: Path
    config: AdapterConfig
    pairs: Mapping[str, LowRankPair]
    """By the module of the base that they change."""

    @property
    def num_parameters(self) -> int:
        return sum(pair.num_parameters for pair in self.pairs.values())


@dataclass(frozen=True, slots=True)
class AdaptedProjection:
    """One projection of one layer, and what changes it."""

    pair: LowRankPair
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """An adapter that fits its base, as far as headers and file sizes can tell."""

    files: AdapterFiles
    base: CheckpointSummary
    layers: Mapping[int, Mapping[str, AdaptedProjection]]
    """By layer and projection, as q_proj."""

    def out_features(self, layer: int, projection: str) -> int:
        """Of the base."""
        return self.base.tensors[f"{_module(layer, projection)}.weight"].shape[0]


def inspect_files(path: str | os.PathLike[str], base: str | os.PathLike[str] | None) -> None:
    """Looks through the files of a model, which is an adapter where it has a base.

    CheckpointError, as `inspect_checkpoint` and `inspect_adapter` have it.
    """
    if base is None:
        inspect_checkpoint(path)
    else:
        inspect_adapter(path, base)


def inspect_adapter(path: str | os.PathLike[str], base: str | os.PathLike[str]) -> AdapterSummary:
    """Check an adapter's directory, and its base's, without reading weights.

    CheckpointError, with one line that names file and key or tensor, where it is missing, broken,
    truncated, of a kind that is not supported or of another base.
    """
    summary = inspect_checkpoint(base)
    files = read_adapter_files(path)
    shapes = _shapes(summary)
    targets = files.config.targets([*shapes, EMBEDDING])
    if files.config.target_modules == ALL_LINEAR:
        # What is a linear layer to PEFT differs between its versions: what is there decides.
        targets = {name: found for name, found in targets.items() if _SERVED.fullmatch(name)}
    file = files.path / WEIGHTS_NAME
    for name in (*targets, *files.pairs):
        _check_served(files, name, shapes)
    missing = [name for name in targets if name not in files.pairs]
    if missing or not targets:
        raise CheckpointError(
            f"{file}: holds nothing of {missing[0]}, which target_modules means"
            if missing
            else f"{files.config.path}: target_modules: the base {summary.path} has nothing of it: "
            "an adapter for another base"
        )
    layers: dict[int, dict[str, AdaptedProjection]] = {}
    for name, pair in files.pairs.items():
        if name not in targets:
            raise CheckpointError(f"{file}: holds {name}, which target_modules does not mean")
        rank, scale = targets[name]
        _check_shapes(files, name, pair, rank, shapes[name])
        found = _SERVED.fullmatch(name)
        assert found is not None
        layers.setdefault(int(found[1]), {})[found[2]] = AdaptedProjection(pair, scale)
    return AdapterSummary(files, summary, MappingProxyType(layers))


def is_adapter(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds an adapter, and no checkpoint."""
    path = Path(directory)
    return (path / CONFIG_NAME).is_file() and not (path / "config.json").is_file()


def read_adapter_files(path: str | os.PathLike[str]) -> AdapterFiles:
    """What an adapter says of itself; raises CheckpointError."""
    directory = Path(path)
    require_directory(directory)
    config = AdapterConfig.read(directory)
    file = directory / WEIGHTS_NAME
    if not file.is_file():
        pickled = sorted(each.name for each in directory.glob("*.bin"))
        if pickled:
            raise CheckpointError(
                f"{directory}: {pickled[0]} is pickled, which can run code when it is loaded; "
                "only safetensors weights are read"
            )
        raise CheckpointError(f"{directory}: {WEIGHTS_NAME} is missing")
    return AdapterFiles(directory, config, MappingProxyType(_pairs(file, read_header(file))))


def _pairs(file: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, LowRankPair]:
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        found = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if found is None or not name.startswith(_PREFIX):
            raise CheckpointError(f"{file}: holds {name!r:.120}, which is no lora_A or lora_B")
        if len(tensor.shape) != 2 or tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: {name!r:.120} is {tensor.dtype!r:.20} {list(tensor.shape)!r:.80}; "
                f"matrices of {', '.join(DTYPES)} are read"
            )
        sides.setdefault(found[1], {})[found[2]] = tensor
    for name, pair in sides.items():
        for side in "AB":
            if side not in pair:
                raise CheckpointError(f"{file}: holds no lora_{side} of {name!r:.120}")
    if not sides:
        raise CheckpointError(f"{file}: holds no tensors")
    return {name: LowRankPair(pair["A"], pair["B"]) for name, pair in sides.items()}


def served_modules(base: CheckpointSummary) -> dict[str, tuple[int, ...]]:
    """Shapes [out_features, in_features] of the projections that an adapter may change."""
    return {name: shape for name, shape in _shapes(base).items() if _SERVED.fullmatch(name)}


def _check_served(files: AdapterFiles, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if name not in shapes and name != EMBEDDING:
        raise CheckpointError(
            f"{files.path / WEIGHTS_NAME}: the base has no {name!r:.120}: an adapter for another "
            "base"
        )
    if _SERVED.fullmatch(name) is None:
        raise CheckpointError(
            f"{files.config.path}: target_modules: {name} cannot be changed by an adapter; "
            f"supported: {', '.join(PROJECTIONS)} of dense layers"
        )


def _check_shapes(
    files: AdapterFiles, name: str, pair: LowRankPair, rank: int, base: tuple[int, ...]
) -> None:
    out_features, in_features = base
    file = files.path / WEIGHTS_NAME
    shapes = f"lora_A {list(pair.down.shape)}, lora_B {list(pair.up.shape)}"
    if pair.down.shape[1] != in_features or pair.up.shape[0] != out_features:
        raise CheckpointError(
            f"{file}: {name}: {shapes} do not fit the base's {list(base)}: an adapter for another "
            "base"
        )
    if pair.down.shape[0] != rank or pair.up.shape[1] != rank:
        raise CheckpointError(f"{file}: {name}: {shapes}; {CONFIG_NAME} says rank {rank}")


def _shapes(base: CheckpointSummary) -> dict[str, tuple[int, ...]]:
    """Of the base's linear layers, by module."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in base.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not name.startswith(EMBEDDING)
    }


def _module(layer: int, projection: str) -> str:
    place = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{place}.{projection}"
